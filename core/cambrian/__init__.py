"""Cambrian: a plugin-based model zoo, from raw data to a verified, fast ONNX artifact.

    import cambrian
    cambrian.train("gpt-char", "runs/bard", data=["shakespeare.txt"])
    cambrian.export("runs/bard", "runs/bard-onnx")
    cambrian.run("runs/bard-onnx", ["ROMEO:"], max_new_tokens=100)

Names are imported when they are first used, so that `import cambrian` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cambrian.api import (
        evaluate,
        export,
        load,
        lock,
        open_checkpoint,
        pull,
        resume,
        run,
        train,
        verify,
        verify_golden,
    )
    from cambrian.artifact import Artifact, GraphFile, Port, Signature
    from cambrian.benchmarking import bench
    from cambrian.checkpoint import Checkpoint
    from cambrian.config import OptimizerConfig, Recipe, TrainConfig
    from cambrian.data import Batches, Prepared, Processor
    from cambrian.errors import CambrianError, UsageError
    from cambrian.exporting import Exporter
    from cambrian.hookspecs import hookimpl
    from cambrian.model import Case, Graph, Model, Update
    from cambrian.pipeline import Pipeline
    from cambrian.registry import load_registry
    from cambrian.runtime import Runtime, Session
    from cambrian.scores import Confusion, Scores
    from cambrian.specs import (
        DatasetEntry,
        Entry,
        ExporterSpec,
        Golden,
        ModelSpec,
        Ref,
        RuntimeSpec,
        TrainerSpec,
    )
    from cambrian.training import Job, Outcome, Trainer
    from cambrian.training.loop import LoopTrainer
    from cambrian.workload import Sizes, Workload

__version__ = "0.1.0"

_HOMES = {
    "api": "evaluate export load lock open_checkpoint pull resume run train verify verify_golden",
    "artifact": "Artifact GraphFile Port Signature",
    "benchmarking": "bench",
    "checkpoint": "Checkpoint",
    "config": "OptimizerConfig Recipe TrainConfig",
    "data": "Batches Prepared Processor",
    "errors": "CambrianError UsageError",
    "exporting": "Exporter",
    "hookspecs": "hookimpl",
    "model": "Case Graph Model Update",
    "pipeline": "Pipeline",
    "registry": "load_registry",
    "runtime": "Runtime Session",
    "scores": "Confusion Scores",
    "specs": "DatasetEntry Entry ExporterSpec Golden ModelSpec Ref RuntimeSpec TrainerSpec",
    "training": "Job Outcome Trainer",
    "training.loop": "LoopTrainer",
    "workload": "Sizes Workload",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]
    "Artifact",
    "Batches",
    "CambrianError",
    "Case",
    "Checkpoint",
    "Confusion",
    "DatasetEntry",
    "Entry",
    "Exporter",
    "ExporterSpec",
    "Golden",
    "Graph",
    "GraphFile",
    "Job",
    "LoopTrainer",
    "Model",
    "ModelSpec",
    "OptimizerConfig",
    "Outcome",
    "Pipeline",
    "Port",
    "Prepared",
    "Processor",
    "Recipe",
    "Ref",
    "Runtime",
    "RuntimeSpec",
    "Scores",
    "Session",
    "Signature",
    "Sizes",
    "TrainConfig",
    "Trainer",
    "TrainerSpec",
    "Update",
    "UsageError",
    "Workload",
    "bench",
    "evaluate",
    "export",
    "hookimpl",
    "load",
    "load_registry",
    "lock",
    "open_checkpoint",
    "pull",
    "resume",
    "run",
    "train",
    "verify",
    "verify_golden",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'cambrian' has no attribute '{name}'")
    return getattr(importlib.import_module(f"cambrian.{home}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
