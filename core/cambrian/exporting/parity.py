"""Does what was exported compute what the model computes? The comparison, and its rule.

An output passes if it is finite and

    max|result - reference| <= limit * max(1, max|reference|)

and if, along its last axis, the result's largest element is the reference's too, or one that the
reference rates within that same bound of its largest. Integers must be equal. The limit follows
from the precision (`TOLERANCES`) and may be set by the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cambrian.artifact import Signature
from cambrian.errors import CambrianError, UsageError
from cambrian.pipeline import Pipeline
from cambrian.runtime import Array, Session

if TYPE_CHECKING:
    from cambrian.model import Case

CHUNK = 1 << 18  # elements compared at once, to stay in cache: GPT-2's logits can be 1 GB

TOLERANCES: Mapping[str, float] = {
    # Two engines sum in different orders: sqrt(768) * 2^-24 is 2e-6 a product, and a few dozen
    # layers leave 1e-5; a wrong mask or a lost bias leaves 1e-2 or more.
    "float32": 1e-4,
    # Weights and sums rounded to 11 bits: 2^-11 is 5e-4 a rounding, through as many layers.
    "float16": 1e-2,
    # Weights and activations rounded to 8 bits: 2^-8 is 4e-3 a rounding, and they add up. What
    # this means for a task only held-out data tells: see `quality`.
    "int8": 1e-1,
    # Half of that: what it is held to has the very weights that the 4 bits hold, so that only
    # activations are rounded, and tables, to 8 bits. What those weights cost `quality` tells.
    "int4": 5e-2,
}

BuildPipeline = Callable[[Session], Pipeline]
Progress = Callable[[str], None]


def tolerance_for(precision: str, given: float | None = None) -> float:
    """The limit of a precision, unless one is given; UsageError if there is none."""
    if given is not None:
        if not 0 < given < 1:
            raise UsageError(f"The tolerance must lie between 0 and 1, not at {given}.")
        return given
    if precision not in TOLERANCES:
        raise UsageError(f"There is no precision '{precision}', only {', '.join(TOLERANCES)}.")
    return TOLERANCES[precision]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What comparing found: of one output, or the worst of a case's.

    `problem` is a sentence's end where figures do not say it; `allowed` is what `max_abs_diff`
    may be; `relative_rms` is the error's root mean square over the reference's.
    """

    name: str
    max_abs_diff: float = 0.0
    allowed: float = 0.0
    relative_rms: float = 0.0
    argmax_agreement: float = 1.0
    problem: str = ""

    @property
    def badness(self) -> float:
        """Above 1 is a failure."""
        if self.problem:
            return math.inf
        if not self.allowed:  # then none is
            return math.inf if self.max_abs_diff else 0.0
        return self.max_abs_diff / self.allowed

    def __str__(self) -> str:
        if self.problem:
            return f"'{self.name}': {self.problem}"
        return f"'{self.name}': differs by {self.max_abs_diff:.3g}, allowed {self.allowed:.3g}"


def compare(name: str, reference: Array, result: Array, limit: float) -> Result:
    """Compare one output over all its elements."""
    if reference.shape != result.shape:
        return Result(name=name, problem=f"has shape {result.shape}, not {reference.shape}")
    if reference.dtype.kind != result.dtype.kind:
        return Result(name=name, problem=f"holds {result.dtype}, not {reference.dtype}")
    if reference.size == 0:
        return Result(name=name)
    if reference.dtype.kind != "f":
        wrong = int(np.count_nonzero(reference != result))
        problem = f"{wrong} of {reference.size} integers differ" if wrong else ""
        return Result(name=name, argmax_agreement=1 - wrong / reference.size, problem=problem)
    return _compare_floats(name, reference, result, limit)


def _compare_floats(name: str, reference: Array, result: Array, limit: float) -> Result:
    largest = worst = squares = scale = 0.0
    rows = agree = 0
    shortfalls: list[Any] = []  # by how much the result's choice is less than the best
    for want, got in _chunks(reference, result):
        difference = np.abs(got - want)
        size, error = magnitude(want), float(difference.max())
        if not math.isfinite(size):
            return Result(name=name, problem="the model itself gives NaN or infinity")
        if not math.isfinite(error):
            return Result(name=name, problem="gives NaN or infinity")
        largest, worst = max(largest, size), max(worst, error)
        squares += float(np.vdot(difference, difference))
        scale += float(np.vdot(want, want))
        best, choice = want.argmax(-1), got.argmax(-1)
        rows += len(want)
        other = np.flatnonzero(best != choice)
        agree += len(want) - len(other)
        shortfalls.append(want[other, best[other]] - want[other, choice[other]])
    allowed = limit * max(1.0, largest)
    beyond = int(np.count_nonzero(np.concatenate(shortfalls) > allowed))
    problem = f"the largest element is another in {beyond} of {rows} rows" if beyond else ""
    return Result(
        name=name,
        max_abs_diff=worst,
        allowed=allowed,
        relative_rms=math.sqrt(squares / scale) if scale else 0.0,
        argmax_agreement=agree / rows,
        problem=problem if worst <= allowed else "",
    )


def magnitude(value: Array) -> float:
    """The largest magnitude, 0 of nothing; NaN if there is one."""
    return max(float(value.max()), -float(value.min())) if value.size else 0.0


def _chunks(reference: Array, result: Array) -> Iterator[tuple[Any, Any]]:
    width = reference.shape[-1] if reference.ndim else 1
    want, got = reference.reshape(-1, width), result.reshape(-1, width)
    step = max(1, CHUNK // width)
    for start in range(0, len(want), step):
        rows = slice(start, start + step)
        yield want[rows].astype(np.float32, copy=False), got[rows].astype(np.float32, copy=False)


def worst_of(name: str, results: Iterable[Result]) -> Result:
    """The worst result under another name, with the lowest agreement and highest RMS of all."""
    results = list(results) or [Result(name=name)]
    worst = max(results, key=lambda result: result.badness)
    return Result(
        name=name,
        max_abs_diff=worst.max_abs_diff,
        allowed=worst.allowed,
        relative_rms=max(result.relative_rms for result in results),
        argmax_agreement=min(result.argmax_agreement for result in results),
        problem=f"{worst.name} {worst.problem}" if worst.problem else "",
    )


Observer = Callable[["Case", int, Mapping[str, Array]], None]


def sweep(
    cases: Iterable[Case],
    reference: Session,
    candidate: Session,
    limit: float,
    *,
    observe: Observer,
    progress: Progress,
) -> list[Result]:
    """Run every case on both sessions, each on with its own state, and compare every output.

    `observe` is told (case, number of the call, the reference's outputs). An engine that cannot
    compute a case fails that case.
    """
    results: list[Result] = []
    for case in cases:
        progress(case.name)
        try:
            found = list(_run_case(case, reference, candidate, limit, observe))
            results.append(worst_of(case.name, found))
        except CambrianError as error:
            results.append(Result(name=case.name, problem=str(error)))
    return results


def _run_case(
    case: Case, reference: Session, candidate: Session, limit: float, observe: Observer
) -> Iterator[Result]:
    states: list[Any] = [None, None]
    for number, (graph, inputs) in enumerate(case.calls):
        want, states[0] = reference.run(graph, inputs, states[0])
        fitted = fit_dtypes(inputs, candidate.signatures[graph])
        got, states[1] = candidate.run(graph, fitted, states[1])
        want = kept(want, candidate.signatures[graph])
        observe(case, number, want)
        for name, value in want.items():
            yield compare(name, value, got[name], limit)


def fit_dtypes(inputs: Mapping[str, Array], signature: Signature) -> dict[str, Array]:
    """Give floating inputs the precision that a graph takes."""
    dtypes = {port.name: port.dtype for port in signature.inputs}
    return {
        name: value.astype(dtypes.get(name, value.dtype)) if value.dtype.kind == "f" else value
        for name, value in inputs.items()
    }


def kept(outputs: Mapping[str, Array], signature: Signature) -> dict[str, Array]:
    """Of each output what an export gives of it: where it says 1, the last entry of that axis."""
    found = dict(outputs)
    for port in signature.outputs:
        if port.name in found:
            one = (slice(-1, None) if dim == 1 else slice(None) for dim in port.shape)
            found[port.name] = found[port.name][tuple(one)]
    return found


def compare_probes(want: Mapping[str, Array], got: Mapping[str, Array]) -> Result:
    """Compare what a pipeline's probe gives on two engines: integers, equal or not."""
    name = "the pipeline's probe"
    if want.keys() != got.keys():
        return Result(name=name, problem=f"gives {sorted(got)}, not {sorted(want)}")
    return worst_of(name, [compare(key, value, got[key], 0.0) for key, value in want.items()])


def receipt(
    results: list[Result], probe: Result | None, session: Session, limit: float
) -> dict[str, Any]:
    """What verification found, JSON-ready: the figures, and every case."""
    overall = worst_of("", results)
    return {
        "provider": session.provider,
        "settings": dict(session.settings),
        "limit": limit,
        "max_abs_diff": max((result.max_abs_diff for result in results), default=0.0),
        "relative_rms": overall.relative_rms,
        "argmax_agreement": overall.argmax_agreement,
        "probe": "not run" if probe is None else (probe.problem or "equal"),
        "cases": [asdict(result) for result in results],
    }


def verdict(results: list[Result], probe: Result | None, precision: str) -> str:
    """Why an export fails: its worst case, or else the probe; "" if it passes.

    The probe decides at float32 only: rounding to float16 may rightly turn a near tie around.
    """
    if not results:
        return "there is no case to check it with"
    worst = max(results, key=lambda found: found.badness)
    if worst.badness <= 1 and probe is not None and precision == "float32":
        worst = probe
    return "" if worst.badness <= 1 else str(worst)
