"""The model novel, for Cambrian. No torch here: `cambrian list` imports this file."""

from __future__ import annotations

from collections.abc import Iterable

from cambrian import ModelSpec, OptimizerConfig, Recipe, Ref, TrainConfig, hookimpl

from .config import NovelConfig, PointData


@hookimpl
def register_models() -> Iterable[ModelSpec]:
    """One classifier of points."""
    return [
        ModelSpec(
            name="novel",
            task="point-classification",
            summary="perceptron with hidden layers, classes of points",
            config=NovelConfig,
            model=Ref("cambrian_novel.model:Novel"),
            processor=Ref("cambrian_novel.data:Scaler"),
            data=Ref("cambrian_novel.data:prepare"),
            pipeline=Ref("cambrian_novel.pipeline:PointClassification"),
            recipe=Recipe(
                train=TrainConfig(steps=1000, batch_size=64),
                optimizer=OptimizerConfig(lr=1e-2),
                data=PointData(),
            ),
            # A model that trains in a second: what `pytest --cambrian` checks.
            example={
                "model": {"hidden_size": 16},
                "train": {"steps": 12, "batch_size": 16, "evaluate_every": 6},
                "optimizer": {"warmup_steps": 2},
            },
            example_inputs=("0.5 -0.2", "-0.1 0.3"),
        )
    ]
