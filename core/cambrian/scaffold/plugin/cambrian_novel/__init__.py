"""The model novel, for Cambrian. No torch here: `cambrian list` imports this file."""

from __future__ import annotations

from collections.abc import Iterable

import cambrian

from .config import NovelConfig, PointData


@cambrian.hookimpl
def register_models() -> Iterable[cambrian.ModelSpec]:
    """One classifier of points."""
    return [
        cambrian.ModelSpec(
            name="novel",
            task="point-classification",
            summary="perceptron with hidden layers, classes of points",
            config=NovelConfig,
            model=cambrian.Ref("cambrian_novel.model:Novel"),
            processor=cambrian.Ref("cambrian_novel.data:Scaler"),
            data=cambrian.Ref("cambrian_novel.data:prepare"),
            pipeline=cambrian.Ref("cambrian_novel.pipeline:PointClassification"),
            recipe=cambrian.Recipe(
                train=cambrian.TrainConfig(steps=1000, batch_size=64),
                optimizer=cambrian.OptimizerConfig(lr=1e-2),
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
