"""cambrian list"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Any

import typer

from cambrian.cli import text
from cambrian.registry import Registry, load_registry


def list_(
    pattern: Annotated[
        str,
        typer.Argument(
            metavar="PATTERN",
            help="Show names that match, as in 'gpt*'; a word without * or ? matches anywhere.",
            show_default=False,
        ),
    ] = "*",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List models and data sets.

    Imports no model: a broken plugin or file costs no more than a row under PROBLEMS.

    \b
    Examples:
      cambrian list
      cambrian list 'gpt*'
      cambrian list --json
    """
    registry = load_registry()
    models = [row for row in model_rows(registry) if matches(row["name"], pattern)]
    datasets = [row for row in dataset_rows(registry) if matches(row["name"], pattern)]
    if as_json:
        rows = [problem._asdict() for problem in registry.problems]
        found = {"models": models, "datasets": datasets, "problems": rows}
        text.as_json(found)
        return
    if models:
        columns = ("name", "architecture", "task", "origin")
        shown = [
            (*(row[column] for column in columns), row["unavailable"] or row["summary"])
            for row in models
        ]
        text.table(("NAME", "ARCH", "TASK", "ORIGIN", "SUMMARY"), shown)
    if datasets:
        typer.echo()
        columns = ("name", "kind", "origin", "summary")
        shown = [tuple(row[column] for column in columns) for row in datasets]
        text.table(("DATA SET", "KIND", "ORIGIN", "SUMMARY"), shown)
    if not models and not datasets:
        typer.echo(f"Nothing is named like '{pattern}'.", err=True)
    text.problems(registry.problems)


def matches(name: str, pattern: str) -> bool:
    """Whether a name fits a wildcard, or holds a plain word; case does not matter."""
    pattern = pattern.lower() if set(pattern) & set("*?[") else f"*{pattern.lower()}*"
    return fnmatchcase(name.lower(), pattern)


def model_rows(registry: Registry) -> list[dict[str, Any]]:
    """Named models, then the architectures that no model is named after."""
    rows: list[dict[str, Any]] = []
    for entry in registry.entries.values():
        spec = registry.models.get(entry.architecture)
        rows.append(
            {
                "name": entry.name,
                "architecture": entry.architecture,
                "task": spec.task if spec else "-",
                "origin": entry.origin,
                "summary": entry.summary,
                "license": entry.license,
                "weights": entry.weights,
                "unavailable": registry.unavailable(entry),
            }
        )
    for spec in registry.models.values():
        if spec.name not in registry.entries:
            rows.append(
                {
                    "name": spec.name,
                    "architecture": spec.name,
                    "task": spec.task,
                    "origin": registry.origins("architecture", spec.name)[0].label,
                    "summary": spec.summary,
                    "license": "",
                    "weights": "",
                    "unavailable": "",
                }
            )
    return rows


def dataset_rows(registry: Registry) -> list[dict[str, Any]]:
    """Named data sets."""
    return [
        {
            "name": dataset.name,
            "kind": dataset.kind,
            "origin": dataset.origin,
            "summary": dataset.summary,
            "license": dataset.license,
            "source": list(dataset.source),
        }
        for dataset in registry.datasets.values()
    ]
