"""What a benchmark finds: of one run, of one subject over all rounds, of all subjects."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

NEAR = 0.01  # of the largest: by how much equal quantities may differ


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One subject in one round, as its process found it.

    first: seconds to the first result (to all, where there is one). rate: units a second.
    pieces: results that came one after the other. load: seconds to a session that is ready, the
    engine's import included. memory: the process's peak, gpu: what it took of the GPU's, disk: the
    files it opened, all in MiB; None where nobody can tell. answer: what it computed, or a sample;
    exact: whether these are names, not quantities. note: why something is missing.
    """

    unit: str
    pieces: int
    first: float
    rate: float
    load: float
    memory: float | None
    gpu: float | None
    disk: float
    provider: str
    settings: Mapping[str, str | int]
    answer: Sequence[float]
    exact: bool
    operators: Mapping[str, int] = field(default_factory=dict[str, int])
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """The median over the rounds, the least and the greatest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Sum up at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One subject over all rounds; where `problem` says why it failed, all else is empty.

    first_ms, rate: as in Measured. ratio: of its rate to that of the first row without a problem,
    `equal` of `compared` results are that row's: names exactly, quantities within NEAR of the
    largest. load_s is the median, memory and gpu the most.
    """

    name: str
    problem: str = ""
    first_ms: Figure | None = None
    rate: Figure | None = None
    ratio: float = 0.0
    equal: int = 0
    compared: int = 0
    load_s: float = 0.0
    memory_mib: float | None = None
    gpu_mib: float | None = None
    disk_mib: float = 0.0
    provider: str = ""
    settings: Mapping[str, str | int] = field(default_factory=dict[str, str | int])
    operators: Mapping[str, int] = field(default_factory=dict[str, int])
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """All rows. `streams`: results come one after the other. `left_out`: exports that an exporter
    refuses to make, and why."""

    unit: str
    streams: bool
    sizes: Mapping[str, int]
    rounds: int
    rows: tuple[Row, ...]
    left_out: Mapping[str, str]


def row(name: str, rounds: Sequence[Measured], base: Measured, rate: float) -> Row:
    """Sum up a subject beside the first one: `base`, whose median is `rate`."""
    first = rounds[0]
    if (first.unit, first.exact, len(first.answer)) != (base.unit, base.exact, len(base.answer)):
        return Row(name=name, problem="its work is another than the first row's")
    figure = Figure.of([each.rate for each in rounds])
    return Row(
        name=name,
        first_ms=Figure.of([1000 * each.first for each in rounds]),
        rate=figure,
        ratio=figure.median / rate,
        equal=equal(base, first),
        compared=len(base.answer),
        load_s=statistics.median(each.load for each in rounds),
        memory_mib=most([each.memory for each in rounds]),
        gpu_mib=most([each.gpu for each in rounds]),
        disk_mib=first.disk,
        provider=first.provider,
        settings=first.settings,
        operators=first.operators,
        note=first.note,
    )


def equal(base: Measured, other: Measured) -> int:
    """How many results are those of `base`; NaN never is."""
    want, got = np.array(base.answer, np.float64), np.array(other.answer, np.float64)
    allowed = 0.0 if base.exact else NEAR * float(np.abs(want).max(initial=0))
    return int(np.count_nonzero(np.abs(want - got) <= allowed))


def most(values: Sequence[float | None]) -> float | None:
    """The greatest; None if one is missing."""
    known = [value for value in values if value is not None]
    return max(known) if len(known) == len(values) else None
