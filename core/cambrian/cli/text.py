"""Plain text for people: aligned tables and wrapped paragraphs, cut to a terminal's width.

Where standard output is no terminal nothing is cut, so that grep finds it.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import typer

from cambrian.registry import Problem

WIDEST = 18


def width() -> int | None:
    """Columns of the terminal, or None where standard output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def printable(text: str) -> str:
    """One line without control characters: names and summaries are plugins' own words."""
    return visible(" ".join(text.split()))


def visible(text: str) -> str:
    """The same with the spaces that it has."""
    return "".join(c if c.isprintable() else " " for c in text)


def shortened(cell: str) -> str:
    """A cell that leaves room for others."""
    return cell if len(cell) <= WIDEST else cell[: WIDEST - 1] + "…"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under a header, columns aligned; on a terminal the last one is cut at its edge,
    and those between it and the first at WIDEST."""
    lines = [list(header), *([printable(cell) for cell in row] for row in rows)]
    limit = width()
    if limit is not None:
        lines = [[x, *(shortened(cell) for cell in inner), y] for x, *inner, y in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header) - 1)]
    for number, line in enumerate(lines):
        cells = (cell.ljust(w) for cell, w in zip(line[:-1], widths, strict=True))
        text = "  ".join([*cells, line[-1]]).rstrip()
        if limit is not None and len(text) > limit:
            text = text[: max(limit - 1, 1)] + "…"
        typer.secho(text, bold=number == 0)


def paragraph(text: str, indent: str = "  ") -> None:
    """Print a sentence, wrapped to the terminal with a hanging indent."""
    limit = width()
    if limit is None:
        typer.echo(indent + printable(text))
        return
    import textwrap

    typer.echo(
        textwrap.fill(
            printable(text),
            max(limit, 20),
            initial_indent=indent,
            subsequent_indent=indent + "  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def as_json(value: Any) -> None:
    """Print JSON."""
    import json

    typer.echo(json.dumps(value, indent=2, default=str))


def problems(rows: Sequence[Problem]) -> None:
    """Print problem rows: who, why, what to do."""
    if not rows:
        return
    typer.echo()
    typer.secho("PROBLEMS", bold=True)
    for row in rows:
        who = f"{row.name} ({row.origin})" if row.name else row.origin
        stop = "" if row.reason.endswith((".", "?")) else "."
        paragraph(f"{who}: {row.reason}{stop} {row.remedy}".rstrip())
