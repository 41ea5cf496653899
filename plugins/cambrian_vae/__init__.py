"""Variational autoencoders: Kingma and Welling's, a convolutional one, and latent diffusion's. No
torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cambrian.config import OptimizerConfig, Recipe, TrainConfig
from cambrian.data.config import ImageData
from cambrian.hookspecs import hookimpl
from cambrian.specs import ModelSpec, Ref
from cambrian_vae.config import ConvVAEConfig, VAEConfig
from cambrian_vae.kl_config import AutoencoderKLConfig

OPTIMIZER = OptimizerConfig(
    lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0, schedule="linear", min_lr_ratio=0.0
)
TRAIN = TrainConfig(steps=3000, batch_size=128, evaluate_every=500, checkpoint_every=500, ema=0.995)


@hookimpl
def register_models() -> Iterable[ModelSpec]:
    """Three architectures."""
    small = {"image_size": (12, 12), "hidden_sizes": (8, 8), "latent_size": 4}
    return [
        spec("vae", "fully connected, latents in a row", VAEConfig, "model:VAE", small),
        spec(
            "conv-vae", "convolutional, latents in a row", ConvVAEConfig, "model:ConvVAE",
            {**small, "feature_size": 16},
        ),
        ModelSpec(
            name="autoencoder-kl",
            task="image-reconstruction",
            summary="variational autoencoder of latent diffusion, pictures to maps of latents",
            config=AutoencoderKLConfig,
            model=Ref("cambrian_vae.kl_model:AutoencoderKL"),
            processor=Ref("cambrian_vae.data:KLProcessor"),
            data=Ref("cambrian_vae.data:prepare_kl"),
            pipeline=Ref("cambrian_vae.kl_pipeline:KLPipeline"),
            weights=Ref("cambrian_vae.kl_weights:WEIGHTS"),
            recipe=Recipe(
                train=TrainConfig(steps=2000, batch_size=8),
                optimizer=OptimizerConfig(lr=2e-4, weight_decay=0.0),
                data=ImageData(),
            ),
            example={
                "model": {
                    "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1,
                    "down_block_types": ("DownEncoderBlock2D",) * 2,
                    "up_block_types": ("UpDecoderBlock2D",) * 2,
                    "sample_size": 12, "in_channels": 1, "out_channels": 1,
                },
                "train": {"steps": 12, "batch_size": 4, "evaluate_every": 6, "evaluate_batches": 2},
                "optimizer": {"warmup_steps": 2, "lr": 3e-3},
                "data": {"source": ("printed-digits-nano",)},
            },
            model_class="AutoencoderKL",
            class_key="_class_name",
            weights_file="diffusion_pytorch_model.safetensors",
        ),
    ]  # fmt: skip


def spec(
    name: str, summary: str, config: type[Any], model: str, small: Mapping[str, Any]
) -> ModelSpec:
    """A VAE of small pictures."""
    return ModelSpec(
        name=name,
        task="unconditional-image-generation",
        summary=f"variational autoencoder, {summary}",
        config=config,
        model=Ref(f"cambrian_vae.{model}"),
        processor=Ref("cambrian.data.images:ImageProcessor"),
        data=Ref("cambrian_vae.data:prepare"),
        pipeline=Ref("cambrian_vae.pipeline:VAEPipeline"),
        recipe=Recipe(train=TRAIN, optimizer=OPTIMIZER, data=ImageData(binarize="sample")),
        example={
            "model": small,
            "train": {"steps": 12, "batch_size": 8, "evaluate_every": 6, "evaluate_batches": 2},
            "optimizer": {"warmup_steps": 2, "lr": 1e-2},
            "data": {"source": ("printed-digits-nano",)},
        },
    )
