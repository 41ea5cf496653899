"""Points: from files to batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Self

import cambrian
import numpy as np
from cambrian.data.rows import RowBatches
from cambrian.files import read_json, write_json
from numpy.typing import NDArray

from .config import NovelConfig, PointData

Points = NDArray[np.float32]


class Scaler(cambrian.Processor):
    """Brings every feature to mean 0 and deviation 1; lives as scaler.json beside the weights."""

    def __init__(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        self.mean, self.deviation = list(mean), list(deviation)

    def __call__(self, points: Points) -> Points:
        """(N, F) to (N, F)."""
        return ((points - self.mean) / self.deviation).astype(np.float32)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read scaler.json."""
        return cls(**read_json(folder / "scaler.json"))

    def save(self, folder: Path) -> None:
        """Write scaler.json."""
        write_json(folder / "scaler.json", {"mean": self.mean, "deviation": self.deviation})


def prepare(
    config: NovelConfig,
    recipe: cambrian.Recipe,
    processor: Scaler | None = None,
    evaluate_only: bool = False,
) -> cambrian.Prepared:
    """Batches of "points" (B, F) and "labels" (B,).

    From scratch the config takes its sizes from the data. UsageError for what cannot be read.
    """
    data: PointData = recipe.data
    points, labels = read(data.source) if data.source else spirals()
    order = np.random.Generator(np.random.Philox(0)).permutation(len(points))
    points, labels = points[order], labels[order]
    digest = sha256(points.tobytes() + labels.tobytes()).hexdigest()
    if processor is None:
        config = replace(
            config, num_features=points.shape[1], num_labels=max(2, int(labels.max()) + 1)
        )
    if data.validation:
        held_out = read(data.validation)
    else:
        cut = max(1, int(len(points) * data.validation_fraction))
        held_out = points[:cut], labels[:cut]
        points, labels = points[cut:], labels[cut:]
    for rows in ((points, labels), held_out):
        require_fit(config, *rows)
    if processor is None:
        spread = points.std(axis=0) + 1e-6
        processor = Scaler(points.mean(axis=0).tolist(), spread.tolist())

    def batches(points: Points, labels: NDArray[np.int64], shuffle: bool) -> RowBatches:
        x = processor(points)
        return RowBatches(
            np.ones(len(x), np.int64),  # all are equally long
            lambda rows, generator: {"points": x[rows], "labels": labels[rows]},
            batch_size=recipe.train.batch_size,
            seed=recipe.train.seed,
            shuffle=shuffle,
        )

    return cambrian.Prepared(
        processor=processor,
        config=config,
        train=batches(points, labels, True),
        validation=batches(*held_out, False),
        summary={"rows": len(points), "content_sha256": digest},
        examples=[
            (" ".join(map(str, point)), str(label)) for point, label in zip(*held_out, strict=True)
        ],
    )


def require_fit(config: NovelConfig, points: Points, labels: NDArray[np.int64]) -> None:
    """UsageError for points that the model has no room for."""
    if points.shape[1] != config.num_features or labels.max() >= config.num_labels:
        raise cambrian.UsageError(
            f"The model takes {config.num_features} numbers and knows {config.num_labels} classes; "
            f"these are points of {points.shape[1]}, of classes to {labels.max()}."
        )


def read(source: Sequence[str]) -> tuple[Points, NDArray[np.int64]]:
    """Points (N, F) and their classes (N,) from files; UsageError where one is none."""
    try:
        lines = [line for name in source for line in Path(name).read_text("utf-8").splitlines()]
        rows = np.array([[float(number) for number in line.split(",")] for line in lines])
    except (OSError, ValueError) as error:
        raise cambrian.UsageError(
            f"Cannot read points from {', '.join(source)}: {error}."
        ) from error
    if rows.ndim != 2 or rows.shape[1] < 2 or len(rows) < 2 or not np.isfinite(rows).all():
        raise cambrian.UsageError(
            f"{', '.join(source)}: write at least two lines, each of numbers and then a class."
        )
    if rows[:, -1].min() < 0 or (rows[:, -1] % 1).any():
        raise cambrian.UsageError(f"{', '.join(source)}: a class is a whole number from 0 on.")
    return rows[:, :-1].astype(np.float32), rows[:, -1].astype(np.int64)


def spirals(count: int = 1000) -> tuple[Points, NDArray[np.int64]]:
    """Two spirals, one about the other: no line parts them."""
    turn = np.linspace(0.5, 3.0, count // 2) * np.pi
    arm = np.stack([turn * np.cos(turn), turn * np.sin(turn)], axis=1) / 10
    points = np.concatenate([arm, -arm]).astype(np.float32)
    return points, np.repeat([0, 1], count // 2)
