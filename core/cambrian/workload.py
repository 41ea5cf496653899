"""What a benchmark has an engine do: the same work on every engine, drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is asked for at once. batch: rows, texts or pictures that an engine sees together.

    Raises ValueError where one is less than 1.
    """

    batch: int = 1

    def __post_init__(self) -> None:
        for each in fields(self):
            if getattr(self, each.name) < 1:
                raise ValueError(f"{each.name} must be at least 1, not {getattr(self, each.name)}")


@dataclass(frozen=True, kw_only=True)
class EncoderSizes(Sizes):
    """length: tokens of each text."""

    length: int = 128


@dataclass(frozen=True, kw_only=True)
class GenerationSizes(Sizes):
    """prompt: tokens that each row begins with. new: tokens that follow, whatever they are."""

    prompt: int = 128
    new: int = 128


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Work to be timed: `run` does it once and yields what comes of it, piece by piece as it comes.

    Each piece is worth `count` of `unit` ("tokens"). Where there are several, the time to the
    first is one figure and the rate of the others is another; where there is one, both are of it.
    Pieces of int64 are names (tokens), which two engines should give alike; others are quantities.
    """

    unit: str
    count: int
    run: Callable[[], Iterator[NDArray[Any]]]


def random_ids(vocab_size: int, rows: int, length: int) -> NDArray[np.int64]:
    """Tokens (rows, length), the same in every call."""
    rng = np.random.Generator(np.random.Philox(0))
    return rng.integers(vocab_size, size=(rows, length))
