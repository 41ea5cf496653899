"""Which checks there are for a plugin: all that apply to each thing that it registers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cambrian.contributions import PROVIDES
from cambrian.discovery import normal
from cambrian.errors import NotFound, nearest
from cambrian.plugins import Plugin, load_plugins
from cambrian.registry import load_registry
from cambrian.testing.entries import ENTRY_CHECKS
from cambrian.testing.exporters import EXPORTER_CHECKS
from cambrian.testing.models import MODEL_CHECKS
from cambrian.testing.plugins import PLUGIN_CHECKS
from cambrian.testing.runtimes import RUNTIME_CHECKS
from cambrian.testing.trainers import TRAINER_CHECKS

# Checks that run whole commands, export several times, or go over every registered architecture:
# marked `cambrian_long`.
LONG = {
    "command_line_round",
    "it_writes_in_its_folder_alone",
    "it_writes_where_it_is_told",
    "same_model_same_bytes",
    "refusals_are_a_sentence",
    "every_export_verifies",
    "every_precision_verifies",
    "every_format_computes",
}
KINDS: dict[str, tuple[str, tuple[Callable[..., None], ...]]] = {
    "register_models": ("architecture", MODEL_CHECKS),
    "register_trainers": ("trainer", TRAINER_CHECKS),
    "register_exporters": ("exporter", EXPORTER_CHECKS),
    "register_runtimes": ("runtime", RUNTIME_CHECKS),
}


class Planned(NamedTuple):
    """One check of one thing: `subject` is for instance "architecture gpt"."""

    plugin: Plugin
    subject: str
    name: str
    run: Callable[[Path], None]


def plan(name: str) -> list[Planned]:
    """Every check of the plugin or distribution `name`; NotFound if none is installed.

    Of a plugin that is not "ok" there are the checks of its row alone.
    """
    loaded, registry = load_plugins(), load_registry()
    provided = {hook: loaded.provided(hook) for hook in PROVIDES}
    wanted = normal(name)
    rows = [
        index for index, row in enumerate(loaded.rows)
        if wanted in (normal(row.name), normal(row.distribution))
    ]  # fmt: skip
    if not rows:
        known = {n for row in loaded.rows for n in (row.name, row.distribution)}
        raise NotFound(f"No plugin '{name}' is installed.{nearest(name, known)}")
    found: list[Planned] = []
    for index in rows:
        row = loaded.rows[index]
        found += planned(row, f"plugin {row.name}", row, PLUGIN_CHECKS)
        if row.status != "ok":
            continue
        for hook, (kind, checks) in KINDS.items():
            for spec in (spec for owner, spec in provided[hook] if owner == index):
                found += planned(row, f"{kind} {spec.name}", spec, checks)
        for entry in registry.entries.values():
            if entry.origin == row.name:
                found += planned(row, f"model {entry.name}", entry, ENTRY_CHECKS)
    return found


def planned(
    row: Plugin, subject: str, spec: Any, checks: Iterable[Callable[..., None]]
) -> Iterator[Planned]:
    """One subject's checks."""
    for check in checks:
        yield Planned(row, subject, check.__name__.removeprefix("check_"), partial(check, spec))
