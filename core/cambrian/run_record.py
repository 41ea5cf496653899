"""What a run wrote down of itself, read again for its model card.

Paths are cut to their last part: where a file lay on somebody's disk is nobody else's business.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, TypeVar, cast

import msgspec
import tomli_w

from cambrian.errors import BrokenFile
from cambrian.files import read_json
from cambrian.registry import Registry
from cambrian.specs import LOOP, Entry
from cambrian.toml import parse_toml

T = TypeVar("T")
HUB = "hf://"
PATH_END = re.compile("[?#]")  # of an address: what follows may be a key
PASSING = "cache_hit"  # of a data summary: true of the machine, not of the data


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run's record. `metrics` are of the step that was published, `settings` is TOML.

    `local` names the paths of this machine that the files of the run mention.
    """

    target: str
    base: str | None
    trainer: str
    data: Mapping[str, Any]
    metrics: Mapping[str, Any]
    settings: str
    steps: int
    planned: int
    local: tuple[str, ...] = ()

    @classmethod
    def empty(cls) -> RunRecord:
        """Of a folder that holds no record."""
        return cls(
            target="NAME",
            base=None,
            trainer=LOOP,
            data={},
            metrics={},
            settings="",
            steps=0,
            planned=0,
        )

    @classmethod
    def read(cls, train: Path) -> RunRecord | None:
        """Read a run's folder train/; None if there is none, BrokenFile if it is malformed."""
        if not (train / "run.json").is_file() or not (train / "recipe.toml").is_file():
            return None
        record = read_json(train / "run.json")
        file = train / "recipe.toml"
        try:
            recipe = parse_toml(file.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise BrokenFile(f"{file} cannot be read ({error}).") from error
        planned = require(recipe, _Recipe, file).train.steps
        file = train / "data.json"
        data = read_json(file) if file.is_file() else {}
        require(data, _Data, file)
        data.pop(PASSING, None)
        local: list[str] = []
        shown = cast(dict[str, Any], without_folders(recipe, local))
        target = without_folders(str(record.get("target")), local)
        base = record.get("base")
        metrics, steps = figures(train)
        return cls(
            target=str(target),
            base=None if base is None else str(without_folders(str(base), local)),
            trainer=str(record.get("trainer", LOOP)),
            data=cast(dict[str, Any], without_folders(data, local)),
            metrics=metrics,
            settings=tomli_w.dumps(shown),
            steps=steps,
            planned=planned,
            local=tuple(dict.fromkeys(local)),
        )

    def command(self) -> str:
        """The command that makes the model again, given the settings and the data."""
        base = f" --base {shlex.quote(self.base)}" if self.base is not None else ""
        by = f" --trainer {shlex.quote(self.trainer)}" if self.trainer != LOOP else ""
        target = shlex.quote(self.target)
        return f"cambrian train {target}{base}{by} --config recipe.toml -o FOLDER"

    def origin(self, registry: Registry) -> Entry | None:
        """The named model that the run began with, if it did."""
        found = [registry.entries.get(name) for name in (self.base, self.target) if name]
        return next((entry for entry in found if entry is not None), None)

    def base_model(self, registry: Registry) -> str:
        """The Hub's name of the weights that the run began with, or an empty string."""
        entry = self.origin(registry)
        for place in (self.base, self.target, entry.weights if entry is not None else ""):
            if place and place.startswith(HUB):
                return place.removeprefix(HUB).partition("@")[0]
        return ""


class _Train(msgspec.Struct):
    steps: int = 0


class _Recipe(msgspec.Struct):
    train: _Train = msgspec.field(default_factory=_Train)


class _Data(msgspec.Struct):
    sources: list[Any] = []
    validation_sources: list[Any] = []


class _State(msgspec.Struct):
    step: int = 0
    best: Any = None
    best_step: int | None = None
    circumstances: dict[str, Any] = {}


class _Step(msgspec.Struct):
    step: int


def require(value: object, kind: type[T], file: Path) -> T:
    """What is read of a record, with the types that it must have; BrokenFile for others."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise BrokenFile(f"{file} is not as a run writes it: {error}.") from error


def without_folders(value: Any, cut: list[str]) -> Any:
    """The value with every absolute path in it cut to its last part, and every web address to what
    has no key in it; `cut` gets the whole paths, and the addresses that are left."""
    if isinstance(value, Mapping):
        items = cast(Mapping[str, Any], value).items()
        return {private(key, cut): without_folders(item, cut) for key, item in items}
    if isinstance(value, list):
        return [without_folders(item, cut) for item in cast(Sequence[Any], value)]
    return private(value, cut) if isinstance(value, str) else value


def private(text: str, cut: list[str]) -> str:
    """The same for one text, if it is a path or an address."""
    scheme, mark, rest = text.partition("://")
    if mark and scheme.isalnum() and scheme.lower() != "file":
        host, slash, path = rest.partition("/")
        path = PATH_END.split(path)[0]
        shown = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
        if shown != text:
            cut.append(shown)
        return shown
    path = rest if mark and scheme.lower() == "file" else text
    if PurePath(path).is_absolute() or path.startswith("~"):
        cut.append(text)
        return PurePath(path).name or text
    return text


def figures(train: Path) -> tuple[dict[str, Any], int]:
    """The figures of what was published, and how many steps the run has taken.

    Published is the best by held-out loss: of its step are the held-out figures, the training's own
    are the last.
    """
    from cambrian.training.log import METRICS, read_metrics
    from cambrian.training.state import STATE, saved_states

    states = saved_states(train)
    file = (states[-1] if states else train) / STATE
    known = require(read_json(file) if states else {}, _State, file)
    steps = known.step
    published = steps if known.best is None else known.best_step or 0
    last: dict[str, Any] = {}
    held_out: dict[str, Any] = {}
    for record in read_metrics(train):
        if require(record, _Step, train / METRICS).step > steps:
            continue
        measured = {key: item for key, item in record.items() if key.startswith("validation_")}
        last |= {key: item for key, item in record.items() if key not in measured}
        if record["step"] <= published:
            held_out |= measured
    last.pop("step", None)
    found = {"step": published, **held_out, "steps_trained": steps, **last}
    return {**found, **known.circumstances}, steps


def model_index(name: str, task: str, record: RunRecord) -> dict[str, Any]:
    """The held-out figures as the Hub's `model-index`; nothing where there are none."""
    metrics = [
        {"type": key.removeprefix("validation_"), "value": value, "name": key.replace("_", " ")}
        for key, value in record.metrics.items()
        if key.startswith("validation_") and isinstance(value, int | float) and math.isfinite(value)
    ]
    if not metrics:
        return {}
    sources = record.data.get("validation_sources") or record.data.get("sources") or ["unknown"]
    shown = ", ".join(str(source) for source in sources[:3])
    data = {"name": f"{shown} (held out)", "type": "local"}
    result = {"task": {"type": task}, "dataset": data, "metrics": metrics}
    return {"model-index": [{"name": name, "results": [result]}]}
