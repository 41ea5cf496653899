"""Small models with known behaviour, for tests of the trainer."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cambrian.config import OptimizerConfig, Recipe, TrainConfig
from cambrian.data import Prepared
from cambrian.model import Batch, Case, Graph, Losses, Model, Update
from cambrian.training import Job, Outcome
from cambrian.training.loop import LoopTrainer


class Line(Model):
    """y = W x + b with a hidden layer and dropout: enough to need every kind of state."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 8)
        self.norm = nn.LayerNorm(8)
        self.outer = nn.Linear(8, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.dropout(self.norm(self.inner(x)).tanh())).squeeze(-1)

    def updates(self) -> Sequence[Update]:
        return [Update(name="line", module=self, loss=self.loss)]

    def loss(self, batch: Batch) -> Losses:
        x = batch["x"].to(self.inner.weight.dtype)
        return {"loss": (self(x).float() - batch["y"]).square().mean()}

    def graphs(self) -> Sequence[Graph]:
        return ()

    def cases(self) -> Iterable[Case]:
        return ()


class Duel(Line):
    """Two players that move different parameters, one of them every second step."""

    def updates(self) -> Sequence[Update]:
        return [
            Update(name="inner", module=self.inner, loss=self.loss),
            Update(name="outer", module=self.outer, loss=self.loss, every=2, optimizer={"lr": 0.5}),
        ]


class Rows:
    """Rows of a fixed linear problem, in an order given by the batch's number."""

    def __init__(self, batch_size: int, count: int = 64, poison: int | None = None) -> None:
        rng = np.random.Generator(np.random.Philox(1))
        self.x = rng.standard_normal((count, 4)).astype(np.float32)
        self.y = (self.x @ np.array([1.0, -2.0, 3.0, 0.5], np.float32)).astype(np.float32)
        self.batch_size, self.poison = batch_size, poison

    def __len__(self) -> int:
        return len(self.x) // self.batch_size

    def batch(self, index: int) -> Mapping[str, np.ndarray]:
        rows = np.arange(index * self.batch_size, (index + 1) * self.batch_size) % len(self.x)
        y = self.y[rows]
        return {"x": self.x[rows], "y": y * np.nan if index == self.poison else y}


def recipe(train: Mapping[str, Any] | None = None, **optimizer: Any) -> Recipe:
    """A short run on the CPU."""
    plain = TrainConfig(
        steps=12,
        batch_size=8,
        device="cpu",
        precision="float32",
        evaluate_every=4,
        checkpoint_every=4,
        log_every=1,
    )
    return Recipe(
        train=dataclasses.replace(plain, **(train or {})),
        optimizer=OptimizerConfig(**{"lr": 0.05, "warmup_steps": 2, **optimizer}),
    )


class Fitted(NamedTuple):
    """What came of a run: `published` holds the weights each time they were published."""

    model: Model
    outcome: Outcome
    events: list[dict[str, Any]]
    published: list[dict[str, Tensor]]


def fit(
    folder: Path,
    settings: Recipe,
    model: Model | None = None,
    *,
    held_out: bool = True,
    poison: int | None = None,
    stop_at: int | None = None,
) -> Fitted:
    """Train on the fixed problem."""
    if model is None:
        torch.manual_seed(0)
        model = Line()
    events: list[dict[str, Any]] = []
    asked = itertools.count(1)
    size = settings.train.batch_size
    published: list[dict[str, Tensor]] = []
    job = Job(
        model=model,
        data=Prepared(
            processor=None,  # pyright: ignore[reportArgumentType]
            config=None,
            train=Rows(size, poison=poison),
            validation=Rows(16) if held_out else None,
        ),
        recipe=settings,
        folder=folder,
        publish=lambda m: published.append({k: v.clone() for k, v in m.state_dict().items()}),
        report=lambda event: events.append(dict(event)),
        stop=lambda: next(asked) == stop_at,
    )
    return Fitted(model, LoopTrainer().fit(job), events, published)


def equal(a: nn.Module, b: nn.Module) -> bool:
    """Whether two models have the same bits."""
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)
