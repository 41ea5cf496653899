"""cambrian run"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cambrian.cli.completion import complete_model
from cambrian.cli.progress import Downloads, say
from cambrian.config import parse_assignment
from cambrian.errors import UsageError
from cambrian.files import write_bytes


def run(
    name: Annotated[
        str,
        typer.Argument(
            help="An exported folder, a checkpoint, or a named model.",
            autocompletion=complete_model,
        ),
    ],
    inputs: Annotated[
        list[str] | None, typer.Argument(help="Inputs; without any, one a line is read.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--input", "-i", help="Read inputs from a file, one a line.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="An option of the task."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same as --set seed=N.")] = None,
    count: Annotated[
        int | None, typer.Option(help="The same as --set count=N: how many to make.")
    ] = None,
    provider: Annotated[
        str, typer.Option("--provider", "--device", help="auto, cpu, cuda; strict if named.")
    ] = "auto",
    runtime: Annotated[str | None, typer.Option(help="Which engine. [default: by format]")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write to a file; JSON or more by its name.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line for each input.")] = False,
) -> None:
    """Run a model: an exported one on its engine, a checkpoint on torch.

    Where a checkpoint's export in float32 lies beside it (NAME-onnx-ort, NAME-onnx), that is run
    instead, for it computes the same and faster; --runtime torch says otherwise.

    \b
    Examples:
      cambrian run runs/bard-onnx "ROMEO:" --set max_new_tokens=200
      cambrian run runs/bard-onnx "JULIET:" --set do_sample=true --set temperature=0.8 --seed 7
      cat prompts.txt | cambrian run runs/bard-onnx --json
      cambrian run runs/embedder-onnx -i sentences.txt -o embeddings.npy
      cambrian run runs/digits-onnx --count 64 --seed 7 -o grid.png
    """
    from cambrian import api
    from cambrian.loading import best_export

    options: dict[str, Any] = dict(parse_assignment(text) for text in settings or ())
    named = {"seed": seed, "count": count}
    options |= {name: value for name, value in named.items() if value is not None}
    items = read_inputs(inputs, file) if inputs or file is not None else []
    better = best_export(name) if runtime is None else None
    with Downloads() as downloads:
        pipeline = api.load(
            better or name, device=provider, runtime=runtime, report=downloads.report
        )
    if not items and not pipeline.inputless:
        items = read_inputs(inputs, file)
    say(f"{better or name} runs on {pipeline.session.provider}")
    if len(items) == 1 and not as_json and out is None:
        for piece in pipeline.stream(items[0], **options):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        return
    results = pipeline(items, **options)
    if not items and out is None and not as_json:
        for result in results:
            print(pipeline.show(result))
        return
    suffix = ".json" if as_json else "" if out is None else out.suffix.lower()
    data = pipeline.encode(results, suffix)
    if out is not None:
        write_bytes(out, data)
        say(f"wrote {out}")
    else:
        sys.stdout.write(data.decode())


def read_inputs(inputs: list[str] | None, file: Path | None) -> list[str]:
    """The inputs from the command line, a file, or standard input."""
    if inputs and file is not None:
        raise UsageError("Give inputs or --input, not both.")
    if inputs:
        return inputs
    if file is not None:
        try:
            content = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"Cannot read {file}: {error}.") from error
    else:
        content = sys.stdin.read()
    # Not splitlines, which knows more ends of lines than files have: results go by the line.
    lines = content.removesuffix("\n").split("\n") if content else []
    if not lines:
        raise UsageError('There is no input; write it behind the name: cambrian run NAME "text".')
    return lines
