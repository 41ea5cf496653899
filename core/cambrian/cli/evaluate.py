"""cambrian eval"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from cambrian.cli.completion import complete_model


def evaluate(
    name: Annotated[
        str, typer.Argument(help="A checkpoint or a named model.", autocompletion=complete_model)
    ],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", help="What to measure on, whole; repeatable."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="One setting; repeatable."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure a model on held-out data.

    Without --data it is the part that the model's own training held out.

    \b
    Examples:
      cambrian eval runs/bard
      cambrian eval gpt2 --data articles.jsonl --json
    """
    from cambrian import api

    metrics = api.evaluate(name, data=data or (), settings=settings or (), device=device)
    if as_json:
        print(json.dumps(metrics))
        return
    for key, value in metrics.items():
        print(f"{key:<20}{value:.4f}")
