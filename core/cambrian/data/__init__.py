"""From raw input to batches: the interfaces; `text` holds what text families share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias

if TYPE_CHECKING:  # settings live in this package too, and `cambrian list` reads them
    import numpy as np
    from numpy.typing import NDArray

IGNORED = -100  # the label of what has nothing to predict, as torch's cross-entropy has it
Arrays: TypeAlias = "Mapping[str, NDArray[np.generic]]"


class Processor(ABC):
    """Turns raw input into arrays and back; lives as files in the checkpoint folder. No torch."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Self:
        """Read the processor's files; NotFound if they are not there."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the processor's files."""


class Batches(Protocol):
    """Batches by number. `batch(i)` depends on i and the settings alone, so that a run killed
    at any step goes on with the very batch that the uninterrupted run would have seen."""

    def __len__(self) -> int:
        """Batches in one pass over the data."""
        ...

    def batch(self, index: int) -> Arrays:
        """Batch number `index` >= 0; numbers past one pass go on in a new order."""
        ...


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Data ready for training: the processor, the config that fits it, and the batches.

    `summary` is what the model card and the logs say of the data, JSON-ready; its
    "content_sha256" must change with the data, for a run goes on only with what it began with.
    Throughput is counted in `unit`s, of which a row of a batch holds `units_per_row`.
    `examples` are the held-out (input, expected) pairs as a person would give them, where there
    are any: what `Pipeline.score` is asked about, with the options `scoring`.
    """

    processor: Processor
    config: Any
    train: Batches
    validation: Batches | None
    unit: str = "rows"
    units_per_row: int = 1
    summary: Mapping[str, Any] = field(default_factory=dict[str, Any])
    examples: Sequence[tuple[Any, Any]] = ()
    scoring: Mapping[str, Any] = field(default_factory=dict[str, Any])


Prepare = Callable[..., Prepared]
"""prepare(config, recipe, processor=None, evaluate_only=False) -> Prepared

With `evaluate_only` the training batches are not asked for; too little text for them is fine.

`config` is the architecture's config, `recipe` the run's Recipe, `processor` the one to go on
with where training starts from a checkpoint; the returned config fits the processor.
"""
