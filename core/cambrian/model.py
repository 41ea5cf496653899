"""The Model interface: a module that says how it is trained and what of it is deployed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cambrian.artifact import Signature
from cambrian.runtime import Array

Batch = dict[str, Tensor]
Losses = Mapping[str, Tensor]  # scalars; "loss" is what is minimised, the rest is logged


@dataclass(frozen=True, kw_only=True)
class Update:
    """One optimizer update of a training step.

    The parameters of `module` move by the gradient of `loss(batch)["loss"]`; all others are
    frozen meanwhile. It happens in every `every`-th step. `optimizer` overrides fields of the
    run's OptimizerConfig for this update alone.

    The updates of a step are given one and the same batch, and a loss may leave in it, under a
    name of its own, what a later one can use; where an update is not due, nothing is left.
    """

    name: str
    module: nn.Module
    loss: Callable[[Batch], Losses]
    every: int = 1
    optimizer: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A computation worth deploying.

    `module` takes the signature's inputs by keyword and returns its outputs in order, as a tuple.
    `last` names outputs of which whoever generates reads only the last entry along an axis (the
    logits along the sequence): an export made for speed may leave out the others.
    """

    name: str
    module: nn.Module
    signature: Signature
    last: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class Case:
    """A check that an export equals its model: calls of graphs, in order, as (graph, inputs).

    Each call receives the state that the calls before it left, and every output that is no state
    is compared. Inputs that are state are never given.
    """

    name: str
    calls: tuple[tuple[str, Mapping[str, Array]], ...]


class Model(nn.Module, ABC):
    """A network of one architecture, built from its config alone: `Model(config)`. That must work
    on torch's meta device too, which has shapes and no numbers (no `.item()`): weights are compared
    with it before memory is taken.

    keep_in_float32: name patterns ("*.wo") of modules whose own weights stay in float32 where all
        others are reduced to float16, whose range (up to 65504) they would leave.
    """

    keep_in_float32: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def updates(self) -> Sequence[Update]:
        """The optimizer updates of one training step, in order."""

    @abstractmethod
    def graphs(self) -> Sequence[Graph]:
        """The computations worth deploying, over this model's own parameters."""

    @abstractmethod
    def cases(self) -> Iterable[Case]:
        """The sweep that proves an export: batch sizes, lengths, padding, cold and cached."""

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Losses:
        """Metrics of a held-out batch, each a mean: by default the losses.

        "count", if given, is what the means are over (labels, say); otherwise it is the rows.
        """
        losses: dict[str, Tensor] = {}
        for update in self.updates():
            losses |= update.loss(batch)
        return losses

    def derive(self, means: Mapping[str, float]) -> Mapping[str, float]:
        """Figures that follow from the means of `evaluate`, as perplexity does from the loss."""
        return {}
