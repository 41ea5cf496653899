"""cambrian run"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cambrian.cli.completion import complete_model
from cambrian.cli.progress import Downloads, say
from cambrian.config import parse_assignment
from cambrian.errors import CambrianError, UsageError
from cambrian.files import write_bytes

if TYPE_CHECKING:
    from cambrian.pipeline import Pipeline


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
    suffix = ".json" if as_json else "" if out is None else out.suffix.lower()
    if out is not None:
        require_place(out)
    options: dict[str, Any] = dict(parse_assignment(text) for text in settings or ())
    named = {"seed": seed, "count": count}
    options |= {name: value for name, value in named.items() if value is not None}
    items = read_inputs(inputs, file) if inputs or file is not None else []
    pipeline = opened(name, provider, runtime)
    if out is not None and suffix not in (pipeline.suffixes or (suffix,)):
        known = ", ".join(pipeline.suffixes)
        raise UsageError(f"'{suffix}' is no kind of file known here; end the name in {known}.")
    if not items and not pipeline.inputless:
        items = read_inputs(inputs, file)
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
    data = pipeline.encode(results, suffix)
    if out is not None:
        write_bytes(out, data)
        say(f"wrote {out}")
    else:
        sys.stdout.write(data.decode())


def require_place(out: Path) -> None:
    """UsageError where no file can be written under that name, before anything is computed."""
    try:
        if out.is_dir():
            raise UsageError(f"{out} is a folder; name a file to write to.")
        folder = next(parent for parent in out.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"Cannot write {out}: {reason}. Name another place.") from error


def opened(name: str, provider: str, runtime: str | None) -> Pipeline:
    """The pipeline, of the checkpoint's own export where that can be run as it is asked for."""
    from cambrian import api
    from cambrian.loading import best_export

    better = best_export(name) if runtime is None else None
    with Downloads() as downloads:
        if better is not None:
            try:
                pipeline = api.load(better, device=provider)
            except CambrianError as error:  # the checkpoint itself may well run
                say(f"{better} is left alone: {error}")
            else:
                say(f"{better} runs on {pipeline.session.provider}")
                return pipeline
        pipeline = api.load(name, device=provider, runtime=runtime, report=downloads.report)
    say(f"{name} runs on {pipeline.session.provider}")
    return pipeline


def read_inputs(inputs: list[str] | None, file: Path | None) -> list[str]:
    """The inputs from the command line, a file, or standard input."""
    if inputs and file is not None:
        raise UsageError("Give inputs or --input, not both.")
    try:
        if file is not None:
            content = file.read_text("utf-8")
        else:
            content = "".join(inputs) if inputs else sys.stdin.read()
        content.encode()  # what a shell gives may be no text
    except (OSError, UnicodeError) as error:
        where = file or ("the inputs" if inputs else "standard input")
        raise UsageError(f"Cannot read {where}: {error}.") from error
    if inputs:
        return inputs
    # Not splitlines, which knows more ends of lines than files have: results go by the line.
    lines = content.removesuffix("\n").split("\n") if content else []
    if not lines:
        raise UsageError('There is no input; write it behind the name: cambrian run NAME "text".')
    return lines
