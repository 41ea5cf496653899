"""The CNN family: a small convolutional classifier of pictures, and by its features the measure of
generated ones. No torch here."""

from __future__ import annotations

from collections.abc import Iterable

from cambrian.config import OptimizerConfig, Recipe, TrainConfig
from cambrian.data.config import ImageData
from cambrian.hookspecs import hookimpl
from cambrian.specs import ModelSpec, Ref
from cambrian_cnn.config import CNNConfig


@hookimpl
def register_models() -> Iterable[ModelSpec]:
    """One classifier."""
    return [
        ModelSpec(
            name="cnn",
            task="image-classification",
            summary="small convolutional classifier, classes of pictures",
            config=CNNConfig,
            model=Ref("cambrian_cnn.model:CNN"),
            processor=Ref("cambrian.data.images:ImageProcessor"),
            data=Ref("cambrian.data.image_classes:prepare"),
            pipeline=Ref("cambrian.image_pipeline:ImageClassification"),
            recipe=Recipe(
                train=TrainConfig(steps=1500, batch_size=64, ema=0.99),
                optimizer=OptimizerConfig(
                    lr=2e-3, betas=(0.9, 0.99), weight_decay=0.05, schedule="linear",
                    min_lr_ratio=0.0,
                ),
                data=ImageData(shift=2),
            ),
            example={
                "model": {"image_size": (12, 12), "hidden_sizes": (4, 8), "feature_size": 16},
                "train": {"steps": 12, "batch_size": 8, "evaluate_every": 6, "evaluate_batches": 2},
                "optimizer": {"warmup_steps": 2, "lr": 1e-2},
                "data": {"source": ("printed-digits-nano",)},
            },
            example_inputs=("picture.png",),
        )
    ]  # fmt: skip
