"""The page of the conformance kit: its checks, as they describe themselves, and what they catch."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cambrian import testing

ROOT = Path(__file__).parents[1]
KINDS = {
    "Of every plugin": testing.PLUGIN_CHECKS,
    "Of an architecture": testing.MODEL_CHECKS,
    "Of a trainer": testing.TRAINER_CHECKS,
    "Of an exporter": testing.EXPORTER_CHECKS,
    "Of an engine": testing.RUNTIME_CHECKS,
    "Of a named model": testing.ENTRY_CHECKS,
}
HEAD = """# Conformance

    pytest --cambrian NAME

checks the installed plugin or distribution NAME: everything that it registers, against every check
of its kind, in folders of its own and away from the network. A check is also a function,
`check(spec, folder)`, in `cambrian.testing`. `pytest -m cambrian` runs the checks without your own
tests, `-m "not cambrian_long"` leaves out those that take longest, `-k NAME` chooses by check,
subject or plugin. One that does not apply (a GPU is needed, say) may be skipped by pytest's means,
and the record says so.

Where every check of a plugin ran, the record is written to `conformance.json` in the plugin's
package (`NAME.conformance.json` beside a single module), or where `--cambrian-record FILE` says.

An architecture is checked by the small model that `ModelSpec.example` describes.
"""
DEFECTS = """## What is caught

Cambrian's own tests hold the kit to these: things that are good but for one defect. Architectures
are the one that `cambrian new plugin` writes, trainers the loop, exporters and engines those of
ONNX.
"""


def conformance() -> str:
    """The page."""
    parts = [HEAD]
    for title, checks in KINDS.items():
        parts += [f"## {title}\n", *described(checks)]
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "core/cambrian/scaffold/plugin")]
    import defects
    import defects_of_engines
    import defects_of_exporters
    import defects_of_trainers

    parts.append(DEFECTS)
    for title, module in {
        "Architectures": defects,
        "Trainers": defects_of_trainers,
        "Exporters": defects_of_exporters,
        "Engines": defects_of_engines,
    }.items():
        parts += [f"### {title}\n", "| defect | check | it says |", "| --- | --- | --- |"]
        for each in module.DEFECTS.values():
            parts.append(f"| {each.what} | {each.check} | {cell(each.says)} |")
        parts.append("")
    return "\n".join(parts)


def described(checks: Iterable[Callable[..., Any]]) -> Iterable[str]:
    """A line for each check."""
    for check in checks:
        text = " ".join((inspect.getdoc(check) or "").split())
        yield f"- **{check.__name__.removeprefix('check_')}**: {text}"
    yield ""


def cell(pattern: str) -> str:
    """A regular expression as a reader may take it."""
    plain = pattern.replace("\\(", "(").replace("\\)", ")").replace(".*", "... ").replace("|", "or")
    return f"`{plain.strip()}`"
