"""The model card that a trained checkpoint carries: what the run's own records say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cambrian.specs import ModelSpec


def checkpoint_card(
    spec: ModelSpec, name: str, data: Mapping[str, Any], metrics: Mapping[str, Any], command: str
) -> str:
    """README.md of a trained model, in the Hub's form (YAML header, Markdown)."""
    lines = [
        "---",
        "library_name: cambrian",
        f"pipeline_tag: {spec.task}",
        "tags:",
        f"- {spec.name}",
        "---",
        "",
        f"# {name}",
        "",
        f"A `{spec.name}` model ({spec.summary}), trained from the data below with Cambrian.",
        "",
        "## Use",
        "",
        "    cambrian run FOLDER",
        "    cambrian export FOLDER EXPORTED",
        "",
        "## Data",
        "",
        *table(data),
        "",
        "## Result",
        "",
        *table(metrics),
        "",
        "## How it was made",
        "",
        f"    {command}",
        "",
        "All settings are in `train/recipe.toml`, all figures in `train/metrics.jsonl`.",
    ]
    return "\n".join(lines) + "\n"


def table(facts: Mapping[str, Any]) -> list[str]:
    """Facts as rows of a Markdown table; a mapping's own facts are left to the files."""
    rows = [
        f"| {key.replace('_', ' ')} | {show(value)} |"
        for key, value in facts.items()
        if not isinstance(value, Mapping)
    ]
    return ["| | |", "| --- | --- |", *rows]


def show(value: Any) -> str:
    """A figure as a person reads it."""
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)  # pyright: ignore[reportUnknownVariableType]
    return str(value)
