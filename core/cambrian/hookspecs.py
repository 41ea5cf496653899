"""The whole plugin surface: six hooks. Mark yours with `@cambrian.hookimpl`.

Hooks return frozen descriptions; they must not import torch or anything else that is slow.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

from cambrian.specs import DatasetEntry, Entry, ExporterSpec, ModelSpec, RuntimeSpec, TrainerSpec

if TYPE_CHECKING:
    import typer

hookspec = pluggy.HookspecMarker("cambrian")
hookimpl = pluggy.HookimplMarker("cambrian")


@hookspec
def register_models() -> Iterable[ModelSpec]:  # pyright: ignore[reportReturnType]
    """Architectures. Since 0.1."""


@hookspec
def register_trainers() -> Iterable[TrainerSpec]:  # pyright: ignore[reportReturnType]
    """Ways to fit a model to data. Since 0.1."""


@hookspec
def register_exporters() -> Iterable[ExporterSpec]:  # pyright: ignore[reportReturnType]
    """File formats to export to. Since 0.1."""


@hookspec
def register_runtimes() -> Iterable[RuntimeSpec]:  # pyright: ignore[reportReturnType]
    """Engines that run a checkpoint or an exported artifact. Since 0.1."""


@hookspec
def register_entries() -> Iterable[Entry | DatasetEntry | Path]:  # pyright: ignore[reportReturnType]
    """Named models and data sets; a path is a file in the form of registry.toml. Since 0.1."""


@hookspec
def register_commands(app: typer.Typer) -> None:
    """Commands of the command line: add them to `app`. Since 0.1."""
