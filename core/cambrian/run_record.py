"""What a run wrote down of itself, read again for its model card.

Paths are cut to their last part: where a file lay on somebody's disk is nobody else's business.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, cast

import tomli_w

from cambrian.errors import BrokenFile
from cambrian.files import read_json
from cambrian.registry import Registry
from cambrian.specs import Entry
from cambrian.toml import parse_toml

HUB = "hf://"
PASSING = "cache_hit"  # of a data summary: true of the machine, not of the data


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run's record. `metrics` are of the step that was published, `settings` is TOML.

    `local` names the paths of this machine that the files of the run mention.
    """

    target: str
    base: str | None
    data: Mapping[str, Any]
    metrics: Mapping[str, Any]
    settings: str
    steps: int
    planned: int
    local: tuple[str, ...] = ()

    @classmethod
    def empty(cls) -> RunRecord:
        """Of a folder that holds no record."""
        return cls(target="NAME", base=None, data={}, metrics={}, settings="", steps=0, planned=0)

    @classmethod
    def read(cls, train: Path) -> RunRecord | None:
        """Read a run's folder train/; None if there is none, BrokenFile if it is malformed."""
        if not (train / "run.json").is_file() or not (train / "recipe.toml").is_file():
            return None
        record = read_json(train / "run.json")
        try:
            recipe = parse_toml((train / "recipe.toml").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise BrokenFile(f"{train / 'recipe.toml'} cannot be read ({error}).") from error
        file = train / "data.json"
        data = read_json(file) if file.is_file() else {}
        data.pop(PASSING, None)
        local: list[str] = []
        shown = cast(dict[str, Any], without_folders(recipe, local))
        target = without_folders(str(record.get("target")), local)
        base = record.get("base")
        metrics, steps = figures(train)
        return cls(
            target=str(target),
            base=None if base is None else str(without_folders(str(base), local)),
            data=cast(dict[str, Any], without_folders(data, local)),
            metrics=metrics,
            settings=tomli_w.dumps(shown),
            steps=steps,
            planned=int(recipe.get("train", {}).get("steps", 0)),
            local=tuple(dict.fromkeys(local)),
        )

    def command(self) -> str:
        """The command that makes the model again, given the settings and the data."""
        base = f" --base {shlex.quote(self.base)}" if self.base is not None else ""
        return f"cambrian train {shlex.quote(self.target)}{base} --config recipe.toml -o FOLDER"

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


def without_folders(value: Any, cut: list[str]) -> Any:
    """The value with every absolute path in it cut to its last part; `cut` gets the whole ones."""
    if isinstance(value, Mapping):
        items = cast(Mapping[str, Any], value).items()
        return {key: without_folders(item, cut) for key, item in items}
    if isinstance(value, list):
        return [without_folders(item, cut) for item in cast(Sequence[Any], value)]
    if isinstance(value, str) and (PurePath(value).is_absolute() or value.startswith("~")):
        cut.append(value)
        return PurePath(value).name or value
    return value


def figures(train: Path) -> tuple[dict[str, Any], int]:
    """The figures of what was published, and how many steps the run has taken.

    Published is the best by held-out loss: of its step are the held-out figures, the training's own
    are the last.
    """
    from cambrian.training.log import read_metrics
    from cambrian.training.state import STATE, saved_states

    states = saved_states(train)
    state = read_json(states[-1] / STATE) if states else {}
    steps, best = int(state.get("step", 0)), int(state.get("best_step") or 0)
    published = best if state.get("best") is not None else steps
    last: dict[str, Any] = {}
    held_out: dict[str, Any] = {}
    for record in read_metrics(train):
        if record["step"] > steps:
            continue
        measured = {key: item for key, item in record.items() if key.startswith("validation_")}
        last |= {key: item for key, item in record.items() if key not in measured}
        if record["step"] <= published:
            held_out |= measured
    last.pop("step", None)
    found = {"step": published, **held_out, "steps_trained": steps, **last}
    return {**found, **state.get("circumstances", {})}, steps


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
