"""What rounding costs: a task's figures on held-out data, of the export beside its model."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan
from typing import Any


def worse(
    before: Mapping[str, float], after: Mapping[str, float], tolerated: Mapping[str, float]
) -> str:
    """Why the export is refused: a figure that changed for the worse by more than is tolerated;
    "" if none did.

    The sign of what is tolerated says which way is worse: a loss may rise by 0.02, an accuracy
    fall by -0.01.
    """
    for name, limit in tolerated.items():
        if name not in before or name not in after:
            continue
        change = after[name] - before[name]
        if change * limit > limit * limit or isnan(change):
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
