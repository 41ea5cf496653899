"""The Python API: everything the command line does, and what it calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cambrian.loading import load, open_checkpoint
from cambrian.runs import Trained, evaluate, resume, train

__all__ = [
    "Trained",
    "evaluate",
    "export",
    "load",
    "open_checkpoint",
    "resume",
    "run",
    "train",
    "verify",
]


def run(
    target: str | Path, inputs: Sequence[Any], *, device: str = "auto", **options: Any
) -> list[Any]:
    """Run a model on inputs: one result each. `options` are the pipeline's own."""
    pipeline = load(target, device=device)
    try:
        return pipeline(inputs, **options)
    finally:
        pipeline.session.close()
