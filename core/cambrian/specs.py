"""What a plugin hands over: frozen descriptions that import nothing heavy.

A spec names the code that does the work by a `Ref`, which is imported only when it is used, so
that listing a thousand models costs no more than reading their names.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cambrian.config import Changes, Recipe
from cambrian.errors import CambrianError

if TYPE_CHECKING:
    from cambrian.data import Prepare, Processor
    from cambrian.exporting import Exporter
    from cambrian.model import Model
    from cambrian.pipeline import Pipeline
    from cambrian.runtime import Runtime
    from cambrian.training import Trainer
    from cambrian.weights import Weights

T = TypeVar("T")


@dataclass(frozen=True)
class Ref(Generic[T]):
    """A reference to code, as in an entry point: "package.module:attribute"."""

    target: str

    def load(self) -> T:
        """Import the module and return the attribute; CambrianError if either is missing."""
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise CambrianError(
                f"Cannot load {self.target}: {error}. The plugin that names it is incomplete or "
                "lacks a dependency; reinstall it, or disable it with CAMBRIAN_DISABLE_PLUGINS."
            ) from error


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """An architecture: how to build, feed, train and deploy one family of models.

    `config` is a frozen dataclass whose fields carry the reference checkpoint's own names.
    `example` holds settings, by section, of a model so small that it trains in a second or two:
    what the contract tests use. `recipe` trains from scratch, `fine_tuning` (if given) from
    weights that exist.
    `model_type` and `model_class` are what the reference writes in config.json as `model_type`
    and `class_key`; they let a folder from elsewhere be recognised. The key "architectures" holds
    a list of classes, as transformers has it, any other one class ("_class_name" of diffusers).
    `weights_file` is what the reference calls its weights; shards have an index, named after it.
    """

    name: str
    task: str
    summary: str
    config: type[Any]
    model: Ref[type[Model]]
    processor: Ref[type[Processor]]
    data: Ref[Prepare]
    pipeline: Ref[type[Pipeline]]
    recipe: Recipe
    fine_tuning: Recipe | None = None
    example: Changes = field(default_factory=dict[str, Mapping[str, Any]])
    weights: Ref[Weights] | None = None
    model_type: str | None = None
    model_class: str | None = None
    class_key: str = "architectures"
    weights_file: str = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class TrainerSpec:
    """A way to fit a model to data."""

    name: str
    summary: str
    trainer: Ref[type[Trainer]]


@dataclass(frozen=True, kw_only=True)
class ExporterSpec:
    """A file format that a model's graphs can be written to; `format` is what runtimes match."""

    name: str
    summary: str
    format: str
    exporter: Ref[type[Exporter]]


@dataclass(frozen=True, kw_only=True)
class RuntimeSpec:
    """An engine that opens folders of the given formats."""

    name: str
    summary: str
    formats: tuple[str, ...]
    runtime: Ref[type[Runtime]]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A named model: an architecture, differences from its defaults, and perhaps weights.

    `files` maps a file's name to its sha256. `recipe` holds differences from the architecture's
    recipe, by section. `origin` says which file or plugin the entry came from.
    """

    name: str
    architecture: str
    summary: str = ""
    license: str = ""
    weights: str = ""
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    origin: str = ""


@dataclass(frozen=True, kw_only=True)
class DatasetEntry:
    """A named data set: where it comes from and what it holds.

    `kind` is "text", "labelled", "tagged" or "pairs". `source` is a list of what `--data` accepts
    (files, folders, globs), or one "python:package.module:attribute" of an installed package: a
    mapping of strings for text, a function that yields records (mappings) for the others.
    """

    name: str
    kind: str
    source: tuple[str, ...]
    summary: str = ""
    license: str = ""
    origin: str = ""
