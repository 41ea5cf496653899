"""A run's settings as frozen dataclasses, and how text becomes one of them.

Precedence, weakest first: the dataclass's defaults, the architecture's recipe, the entry's
differences, `--config FILE.toml`, `--set key=value`. TOML syntax everywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

import msgspec

from cambrian.errors import UsageError, nearest
from cambrian.toml import parse_toml

D = TypeVar("D")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How parameters move.

    name: "adamw" for all, or "muon" for the hidden matrices (Jordan 2024) and AdamW for the rest.
    lr, muon_lr: peak learning rates of the two.
    weight_decay: on parameters of two or more dimensions only (not biases, not norms).
    schedule: after `warmup_steps`, "cosine" or "linear" down to `min_lr_ratio` of the peak at the
        last step, or "constant".
    adamw_parameters: name patterns that Muon leaves to AdamW, beside embeddings and vectors.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    warmup_steps: int = 100
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    min_lr_ratio: float = 0.1
    muon_lr: float = 0.02
    muon_momentum: float = 0.95
    adamw_parameters: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training loop.

    steps, batch_size: optimizer steps, and rows a device sees at once; a step takes
        `accumulate` such batches, each with the same weight whatever it holds.
    precision: "float32"; "bfloat16" computes in bf16 with float32 master weights; "auto" takes
        bfloat16 where the device is fast at it.
    matmul: torch's float32 matmul precision; "medium" may compute in bf16 inside.
    ema: decay of an exponential moving average of the weights, which is then what is saved as
        the model; 0 for none. The decay is (1 + n) / (10 + n) after n steps where that is less.
    evaluate_every, checkpoint_every, log_every: in steps; evaluation reads at most
        `evaluate_batches` batches, 0 for all.
    score: also measure the task's own figures (accuracy, BLEU, distances) at each evaluation.
    patience: stop after so many evaluations without a better loss; 0 to never stop early.
    deterministic: same seed, same device, same threads: same bytes.
    """

    steps: int = 1000
    batch_size: int = 16
    accumulate: int = 1
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    matmul: Literal["highest", "high", "medium"] = "highest"
    compile: bool = False
    clip: float = 1.0
    ema: float = 0.0
    evaluate_every: int = 250
    evaluate_batches: int = 0
    checkpoint_every: int = 250
    log_every: int = 10
    score: bool = False
    patience: int = 0
    deterministic: bool = True
    tensorboard: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a run needs beside the model's config. `data` is the family's own settings class,
    `trainer` that of the trainer, if it has one."""

    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: Any = None
    trainer: Any = None


def fields_of(kind: type[Any]) -> dict[str, Any]:
    """A settings class's field names and types."""
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}


def convert(value: Any, kind: Any, where: str) -> Any:
    """Convert a TOML or JSON value to a field's type, strictly; UsageError says `where`."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}: {_lower(str(error))}, got {_shown(value)}.") from None


def update(instance: D, changes: Mapping[str, Any], where: str) -> D:
    """Return `instance` (a dataclass) with the named fields changed, types and names checked."""
    kinds = fields_of(type(instance))
    values: dict[str, Any] = {}
    for key, value in changes.items():
        if key not in kinds:
            raise UsageError(f"{where}: unknown key '{key}'.{nearest(key, kinds)}")
        values[key] = convert(value, kinds[key], f"{where}: {key}")
    try:
        return dataclasses.replace(instance, **values)  # pyright: ignore[reportArgumentType]
    except ValueError as error:  # a config's own __post_init__
        raise UsageError(f"{where}: {error}") from error


SECTIONS = ("model", "train", "optimizer", "data", "trainer")
Changes = Mapping[str, Mapping[str, Any]]


def apply(config: D, recipe: Recipe, changes: Changes, where: str) -> tuple[D, Recipe]:
    """Apply changes by section ("model", "train", ...) to config and recipe."""
    if unknown := [name for name in changes if name not in SECTIONS]:
        raise UsageError(
            f"{where}: unknown section '{unknown[0]}'.{nearest(unknown[0], SECTIONS)} "
            f"Sections are {', '.join(SECTIONS)}."
        )
    for name in changes:
        if not isinstance(changes[name], Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"{where}: '{name}' is a section; write [{name}] and keys below it.")
        if name != "model" and getattr(recipe, name) is None:
            raise UsageError(
                f"{where}: this run's {name} has no settings of its own; leave out [{name}], or "
                f"choose another {name}."
            )
    parts = {
        name: update(getattr(recipe, name), changes[name], f"{where}: [{name}]")
        for name in SECTIONS[1:]
        if name in changes
    }
    config = update(config, changes.get("model", {}), f"{where}: [model]")
    return config, dataclasses.replace(recipe, **parts)


def read_changes(file: Path) -> Changes:
    """Read a settings file (TOML with the sections above)."""
    try:
        return parse_toml(file.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"Cannot read {file}: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"{file} is not valid TOML: {error}.") from error


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split "key=value"; the value in TOML syntax, or a bare word taken as a string."""
    key, equals, raw = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UsageError(f"'{text}' is no setting; write key=value, for instance steps=200.")
    try:
        return key, parse_toml(f"v = {raw}")["v"]
    except ValueError:
        return key, raw


def parse_settings(assignments: Iterable[str], config: Any, recipe: Recipe) -> Changes:
    """Sort "n_layer=6", "train.steps=200", ... by section.

    A key without a section belongs to the one section that has it.
    """
    keys = {"model": fields_of(type(config))}
    for name in SECTIONS[1:]:
        part = getattr(recipe, name)
        keys[name] = {} if part is None else fields_of(type(part))
    changes: dict[str, dict[str, Any]] = {}
    for text in assignments:
        key, value = parse_assignment(text)
        section, dot, rest = key.partition(".")
        if dot and section in keys:
            changes.setdefault(section, {})[rest] = value
            continue
        owners = [name for name in SECTIONS if key in keys[name]]
        if len(owners) > 1:
            choices = " or ".join(f"{name}.{key}" for name in owners)
            raise UsageError(f"--set {text}: '{key}' is ambiguous; write {choices}.")
        if not owners:
            known = [k for name in SECTIONS for k in keys[name]]
            raise UsageError(f"--set {text}: unknown key '{key}'.{nearest(key, known)}")
        changes.setdefault(owners[0], {})[key] = value
    return changes


def as_changes(config: Any, recipe: Recipe) -> dict[str, dict[str, Any]]:
    """All settings by section, in the form that `read_changes` returns; None is left out."""
    parts = {"model": config, "train": recipe.train, "optimizer": recipe.optimizer}
    own = {"data": recipe.data, "trainer": recipe.trainer}
    parts |= {name: part for name, part in own.items() if part is not None}
    builtin = {name: msgspec.to_builtins(part) for name, part in parts.items()}
    return {
        name: {key: value for key, value in part.items() if value is not None}
        for name, part in builtin.items()
    }


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of thousands of digits
        return "a number too long to print"
    return text if len(text) <= 200 else f"{text[:197]}..."
