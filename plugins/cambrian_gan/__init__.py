"""Generative adversarial networks: fully connected, convolutional and residual. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cambrian.config import OptimizerConfig, Recipe, TrainConfig
from cambrian.data.config import ImageData
from cambrian.hookspecs import hookimpl
from cambrian.specs import ModelSpec, Ref
from cambrian_gan.config import DCGANConfig, GANConfig, ResNetGANConfig

SMALL = {"image_size": (12, 12), "hidden_sizes": (16, 8), "latent_size": 8}


@hookimpl
def register_models() -> Iterable[ModelSpec]:
    """Three pairs; the loss is the config's."""
    return [
        spec("gan", "fully connected pair", GANConfig, "GAN", SMALL),
        spec("dcgan", "convolutional pair", DCGANConfig, "DCGAN", SMALL),
        spec("resnet-gan", "residual pair with spectral norms", ResNetGANConfig, "ResNetGAN",
             SMALL),
    ]  # fmt: skip


def spec(
    name: str, summary: str, config: type[Any], model: str, small: Mapping[str, Any]
) -> ModelSpec:
    """One pair. Clipping would weaken the penalties, and the noisy play gains from an average."""
    return ModelSpec(
        name=name,
        task="unconditional-image-generation",
        summary=f"generative adversarial network, {summary}",
        config=config,
        model=Ref(f"cambrian_gan.model:{model}"),
        processor=Ref("cambrian.data.images:ImageProcessor"),
        data=Ref("cambrian_gan.data:prepare"),
        pipeline=Ref("cambrian_gan.pipeline:GANPipeline"),
        recipe=Recipe(
            train=TrainConfig(
                steps=4000, batch_size=64, clip=0.0, ema=0.995, evaluate_every=500,
                checkpoint_every=500,
            ),
            optimizer=OptimizerConfig(
                lr=1e-3, betas=(0.5, 0.999), weight_decay=0.0, warmup_steps=0, schedule="constant"
            ),
            data=ImageData(),
        ),
        example={
            "model": small,
            "train": {"steps": 12, "batch_size": 8, "evaluate_every": 6, "ema": 0.9},
            "optimizer": {"lr": 2e-3},
            "data": {"source": ("printed-digits-nano",)},
        },
    )  # fmt: skip
