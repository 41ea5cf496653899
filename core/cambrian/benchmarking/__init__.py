"""How fast a model is on this machine, engine beside engine.

Every subject runs in a process of its own, in turn over the rounds, on the same work. What the work
is, the task's pipeline says (`Pipeline.workload`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cambrian.errors import UsageError
from cambrian.hub import Report
from cambrian.hub.snapshot import silent
from cambrian.registry import load_registry

if TYPE_CHECKING:
    from cambrian.benchmarking.figures import Benchmark


def bench(
    targets: Sequence[str | Path],
    *,
    only: Sequence[str] = (),
    sizes: Mapping[str, Any] | None = None,
    data: Sequence[str] = (),
    rounds: int = 3,
    device: str = "auto",
    report: Callable[[str], None] = lambda what: None,
    fetching: Report = silent,
) -> Benchmark:
    """Time checkpoints, named models and exported folders side by side.

    A checkpoint or a name stands for itself on torch (as it is, compiled, in bfloat16) and for
    every export of it that can be made, in a temporary folder. `only` are patterns of the rows'
    names. `sizes` are those of the first target's task, which all are given. `data` is what the
    cost of a coarse precision is measured on, if not on what the model's training held out. What
    fails is a row with its reason.
    """
    from cambrian.benchmarking.course import Course
    from cambrian.benchmarking.subjects import plan, sizes_for

    if not targets or rounds < 1:
        raise UsageError("A benchmark takes at least one model and at least one round.")
    names, registry = [str(target) for target in targets], load_registry()
    work = sizes_for(names[0], registry, dict(sizes or {}), fetching)
    subjects = plan(names, registry, only, fetching)
    with tempfile.TemporaryDirectory(
        prefix="cambrian-bench-", ignore_cleanup_errors=True
    ) as scratch:
        course = Course(Path(scratch), device, asdict(work), data, report)
        course.prepare(subjects)
        for number in range(rounds):
            course.round(f"round {number + 1}/{rounds}", number == 0)
    return course.result(rounds)
