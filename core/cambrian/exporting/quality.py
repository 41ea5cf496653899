"""What rounding costs: a task's figures on held-out data, of the export beside its model."""

from __future__ import annotations

from collections.abc import Mapping
from math import copysign, isfinite, isnan
from typing import Any

from cambrian.config import convert
from cambrian.errors import UsageError, nearest


def limits(tolerated: Mapping[str, float], given: Mapping[str, Any]) -> dict[str, float]:
    """What is tolerated, with the limits that are given in its place; 0 allows no change for the
    worse, and keeps the sign that says which way that is.

    UsageError for a figure that is not limited, and for what is no limit of it.
    """
    found = dict(tolerated)
    for name, value in given.items():
        if name not in tolerated:
            known = ", ".join(tolerated) or "none"
            raise UsageError(
                f"--limit {name}: this task has no such figure to limit.{nearest(name, tolerated)} "
                f"There are: {known}."
            )
        limit = convert(value, float, f"--limit {name}")
        usual = tolerated[name]
        if not isfinite(limit) or (limit and (limit < 0) != (usual < 0)):
            raise UsageError(
                f"--limit {name} must be 0, or a finite number with the sign of {usual:+.4g}, "
                f"which is the way it gets worse; not {limit}."
            )
        found[name] = copysign(limit, usual)
    return found


def worse(
    before: Mapping[str, float], after: Mapping[str, float], tolerated: Mapping[str, float]
) -> str:
    """Why the export is refused: a figure that changed for the worse by more than is tolerated, or
    was not measured; "" if none did.

    The sign of what is tolerated says which way is worse: a loss may rise by 0.02, an accuracy
    fall by -0.01; -0.0 allows it no fall.
    """
    for name, limit in tolerated.items():
        if name not in before or name not in after:
            return f"{name} was not measured, and {limit:+.4g} is all that it may change by"
        change = after[name] - before[name]
        if copysign(1, limit) * change > abs(limit) or isnan(change):
            return (
                f"{name} is {after[name]:.4g} instead of {before[name]:.4g}, a change of "
                f"{change:+.4g} where {limit:+.4g} is allowed (allow more with --limit {name}=...)"
            )
    return ""


def summary(
    before: Mapping[str, float], after: Mapping[str, float], tolerated: Mapping[str, float]
) -> dict[str, Any]:
    """The figures for the receipt."""
    return {"model": dict(before), "export": dict(after), "tolerated": dict(tolerated)}
