"""The Trainer interface: what a way of fitting is given, and what it must keep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cambrian.config import Recipe
from cambrian.data import Prepared
from cambrian.model import Model


@dataclass(frozen=True, kw_only=True)
class Job:
    """A model to fit.

    folder: where the trainer keeps its state, its metrics and its curve; `fit` goes on from
        whatever state it finds there.
    publish: write the model, as it is now, as the run's result.
    fresh: the parts of the model, by their names in its state dict, that begin with no checkpoint's
        weights: in a run from scratch, all.
    observe: look at the model, in eval mode, behind each evaluation: told the step, it returns
        figures to log.
    report: told of progress: a mapping with "step", "steps" and metrics.
    stop: asked after each step; True means save and return.
    """

    model: Model
    data: Prepared
    recipe: Recipe
    folder: Path
    publish: Callable[[Model], None]
    fresh: tuple[str, ...] = ()
    observe: Callable[[Model, int], Mapping[str, float]] = lambda model, step: {}
    report: Callable[[Mapping[str, Any]], None] = lambda event: None
    stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a fit ended: after `step` steps, complete or stopped, with these figures."""

    step: int
    complete: bool
    metrics: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Trainer(ABC):
    """A way to fit a model to data."""

    def check(self, job: Job) -> None:  # noqa: B027
        """Refuse, by UsageError, what cannot work: asked before anything is replaced."""

    @abstractmethod
    def fit(self, job: Job) -> Outcome:
        """Train; CambrianError where the loss stops being finite or the disk fails."""
