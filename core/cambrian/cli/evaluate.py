"""cambrian eval"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cambrian.cli import text
from cambrian.cli.completion import complete_model
from cambrian.config import parse_assignment
from cambrian.errors import UsageError

if TYPE_CHECKING:
    from cambrian.scores import Confusion


RESERVED = {
    "target",
    "data",
    "settings",
    "device",
    "examples",
    "fetching",
    "progress",
}  # parameters of the calls below


def evaluate(
    name: Annotated[
        str,
        typer.Argument(
            help="A checkpoint, an exported folder or a named model.",
            autocompletion=complete_model,
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", help="What to measure on, whole; repeatable."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="One setting; repeatable."),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="An option of the task; repeatable."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    picture: Annotated[
        Path | None,
        typer.Option("--picture", "-o", help="Draw the confusion matrix (.svg, .png, .pdf)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure a model on held-out data.

    Without --data it is the part that the model's own training held out. A checkpoint is measured
    by its losses and by its task's figures (accuracy and F1, BLEU), an exported folder by these.

    \b
    Examples:
      cambrian eval runs/bard
      cambrian eval gpt2 --data articles.jsonl --json
      cambrian eval runs/translator -d test.en -d test.de --option num_beams=4
      cambrian eval runs/reviews --picture confusion.svg
    """
    from cambrian import api
    from cambrian.cli.progress import Counted, Downloads, say
    from cambrian.scores import require_picture

    given = dict(map(parse_assignment, options or ()))
    if clash := sorted(given.keys() & RESERVED):
        raise UsageError(f"--option {clash[0]} is no option of a task; see cambrian eval --help.")
    if picture is not None:
        require_picture(picture)
    with Downloads() as downloads, Counted(before=downloads) as counted:
        scores = api.evaluate(
            name,
            data=data or (),
            settings=settings or (),
            device=device,
            fetching=downloads.report,
            progress=counted.report,
            **given,
        )
    if as_json:
        confusion = {} if scores.confusion is None else {"confusion": asdict(scores.confusion)}
        print(json.dumps({**scores.metrics, **confusion, **scores.facts}))
    else:
        width = max(19, *map(len, scores.metrics), *map(len, scores.facts))
        for key, value in scores.metrics.items():
            print(f"{key:<{width}} {value:.4f}")
        for key, value in scores.facts.items():
            print(f"{key:<{width}} {value}")
        if scores.confusion is not None:
            print()
            text.table(*table(scores.confusion))
    if picture is not None:
        if scores.confusion is None:
            raise UsageError(f"'{name}' is no classifier: it has no confusion matrix to draw.")
        scores.confusion.draw(picture)
        say(f"wrote {picture}")


def table(confusion: Confusion) -> tuple[list[str], list[list[str]]]:
    """Header and rows: what was expected, and how often it was taken for what, by number."""
    numbers = [str(n) for n in range(1, len(confusion.labels) + 1)]
    rows = zip(numbers, confusion.labels, confusion.counts, strict=True)
    return ["", "expected", *numbers], [[n, label, *map(str, row)] for n, label, row in rows]
