"""Vision transformers (Dosovitskiy et al. 2020), which tell the classes of pictures. No torch
here."""

from __future__ import annotations

from collections.abc import Iterable

from cambrian import Entry, ModelSpec, OptimizerConfig, Recipe, Ref, TrainConfig, hookimpl
from cambrian.data.config import ImageData
from cambrian_vit.config import ViTConfig


@hookimpl
def register_models() -> Iterable[ModelSpec]:
    """One architecture, by default of its base size."""
    return [
        ModelSpec(
            name="vit",
            task="image-classification",
            summary="vision transformer, classes of pictures",
            config=ViTConfig,
            model=Ref("cambrian_vit.model:ViTForImageClassification"),
            processor=Ref("cambrian.data.images:ImageProcessor"),
            data=Ref("cambrian.data.image_classes:prepare"),
            pipeline=Ref("cambrian.image_pipeline:ImageClassification"),
            weights=Ref("cambrian_vit.weights:WEIGHTS"),
            recipe=Recipe(
                train=TrainConfig(batch_size=64),
                optimizer=OptimizerConfig(
                    name="muon", adamw_parameters=("classifier.weight",), lr=2e-3
                ),
                data=ImageData(),
            ),
            fine_tuning=Recipe(
                train=TrainConfig(batch_size=16, evaluate_every=100),
                optimizer=OptimizerConfig(
                    lr=5e-5, weight_decay=0.01, schedule="linear", min_lr_ratio=0.0
                ),
                data=ImageData(crop="none"),
            ),
            example={
                "model": {
                    "image_size": 12,
                    "patch_size": 4,
                    "num_channels": 1,
                    "hidden_size": 16,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "intermediate_size": 32,
                },
                "train": {"steps": 12, "batch_size": 8, "evaluate_every": 6, "evaluate_batches": 2},
                "optimizer": {"warmup_steps": 2},
                "data": {"source": ("printed-digits-nano",)},
            },
            example_inputs=("picture.png",),
            model_type="vit",
            model_class="ViTForImageClassification",
        )
    ]


@hookimpl
def register_entries() -> Iterable[Entry]:
    """A small one, for pictures like MNIST's."""
    return [
        Entry(
            name="vit-digits",
            architecture="vit",
            summary="small ViT for grey pictures of 28 by 28",
            config={
                "image_size": 28,
                "patch_size": 4,
                "num_channels": 1,
                "hidden_size": 64,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "intermediate_size": 128,
            },
            recipe={"train": {"steps": 1500}, "data": {"shift": 2}},
        )
    ]
