"""What a plugin hands over: frozen descriptions that import nothing heavy.

A spec names the code that does the work by a `Ref`, which is imported only when it is used, so
that listing a thousand models costs no more than reading their names.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cambrian.config import Changes, Recipe, apply
from cambrian.errors import CambrianError

if TYPE_CHECKING:
    from cambrian.data import Prepare, Processor
    from cambrian.exporting import Exporter
    from cambrian.model import Model
    from cambrian.pipeline import Pipeline
    from cambrian.runtime import Runtime
    from cambrian.training import Trainer
    from cambrian.weights import Weights

PYTHON = "python:"  # begins a source of data that is code
LOOP = "loop"  # the trainer of a run that names none
C = TypeVar("C")
T = TypeVar("T")
# Limits of a Golden: it comes from files that anybody may have written.
MOST_INPUTS, MOST_NUMBERS, MOST_IDS, MOST_WORDS = 32, 1024, 100, 200
MOST = 1 << 31


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
    `recipe` trains from scratch, `fine_tuning` (if given) from weights that exist.
    `example` holds settings, by section, of a model so small that it trains in a second or two:
    what the conformance kit uses. `example_inputs` are what the kit gives to `cambrian run`, which
    finds a small picture, picture.png, in its folder.
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
    example_inputs: tuple[str, ...] = ()
    weights: Ref[Weights] | None = None
    model_type: str | None = None
    model_class: str | None = None
    class_key: str = "architectures"
    weights_file: str = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class TrainerSpec:
    """A way to fit a model to data.

    `config` is a frozen dataclass of the trainer's own settings, if it has any: a run's section
    "trainer", and `recipe.trainer` of its job. `recipe` holds settings by section that suit this
    trainer better than an architecture's own do; a caller's are stronger.
    """

    name: str
    summary: str
    trainer: Ref[type[Trainer]]
    config: type[Any] | None = None
    recipe: Changes = field(default_factory=dict[str, Mapping[str, Any]])

    def settings(self, config: C, recipe: Recipe) -> tuple[C, Recipe]:
        """A model's config and recipe, as this trainer would have them."""
        own = None if self.config is None else self.config()
        recipe = dataclasses.replace(recipe, trainer=own)
        return apply(config, recipe, self.recipe, f"trainer '{self.name}'")


@dataclass(frozen=True, kw_only=True)
class ExporterSpec:
    """A file format that a model's graphs can be written to; `format` is what runtimes match.

    repackages: its files compute what another exporter's do, in another layout, so that a
        benchmark need not measure both.
    """

    name: str
    summary: str
    format: str
    exporter: Ref[type[Exporter]]
    repackages: bool = False


@dataclass(frozen=True, kw_only=True)
class RuntimeSpec:
    """An engine that opens folders of the given formats, those first that it is fastest with."""

    name: str
    summary: str
    formats: tuple[str, ...]
    runtime: Ref[type[Runtime]]


@dataclass(frozen=True, kw_only=True)
class Golden:
    """What a reference implementation computed with an entry's weights, in float32, to hold our
    reading of them to.

    `inputs` are numbers by graph and by input, one row of a batch each. The graphs named run once,
    in the model's own order, each with the state that those before it left. Of the last one's
    `output` (its first of real numbers, if none is named) the row at `position` has its largest
    elements at `ids`, the largest first, with these `values`. `tolerance` is what
    exporting.parity calls the limit, that of float32 unless given. `source` says who computed it.
    ValueError where the fields contradict each other or hold more than an entry may.
    """

    inputs: Mapping[str, Mapping[str, tuple[int | float, ...]]]
    ids: tuple[int, ...]
    values: tuple[float, ...]
    source: str
    output: str = ""
    position: int = -1
    tolerance: float | None = None

    def __post_init__(self) -> None:
        rows = [row for graph in self.inputs.values() for row in graph.values()]
        if not all(self.inputs.values()) or not 1 <= len(rows) <= MOST_INPUTS:
            raise ValueError(f"inputs are for each graph at least one, in all up to {MOST_INPUTS}")
        if not all(1 <= len(row) <= MOST_NUMBERS for row in rows):
            raise ValueError(f"an input has from 1 to {MOST_NUMBERS} numbers")
        if not 1 <= len(self.ids) <= MOST_IDS or len(self.ids) != len(self.values):
            raise ValueError(f"ids and values are equally many, from 1 to {MOST_IDS}")
        numbers = [*itertools.chain(*rows), *self.ids, *self.values, self.position]
        if not all(abs(number) < MOST for number in numbers):  # not NaN either
            raise ValueError(f"a number is none, or not below {MOST}")
        if min(self.ids) < 0 or len({*self.ids}) < len(self.ids):
            raise ValueError("ids are indices, each given once")
        if list(self.values) != sorted(self.values, reverse=True):
            raise ValueError("values are the largest ones, the largest first")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise ValueError("tolerance lies between 0 and 1")
        if not self.source.isprintable() or not 1 <= len(self.source) <= MOST_WORDS:
            raise ValueError(f"source is one line of at most {MOST_WORDS} characters")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A named model: an architecture, differences from its defaults, and perhaps weights.

    `files` maps a file's name to its sha256. `recipe` holds differences from the architecture's
    recipe, by section. `golden` proves that its weights are read right. `origin` says which file
    or plugin the entry came from.
    """

    name: str
    architecture: str
    summary: str = ""
    license: str = ""
    weights: str = ""
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    golden: Golden | None = None
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
