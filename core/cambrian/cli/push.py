"""cambrian push"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cambrian.cli import text

if TYPE_CHECKING:
    from cambrian.hub.push import Pushed
    from cambrian.pushing import Plan


def push(
    folder: Annotated[Path, typer.Argument(help="A trained checkpoint or an exported folder.")],
    address: Annotated[str, typer.Argument(metavar="HF://OWNER/REPO", help="Where to.")],
    revision: Annotated[
        str | None, typer.Option(help="Branch, made if missing. [default: main]")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private.")
    ] = False,
    pull_request: Annotated[
        bool, typer.Option("--pull-request", help="Propose it, to a repository that exists.")
    ] = False,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Of the commit.")] = None,
    license_: Annotated[
        str, typer.Option("--license", help="For the card: mit, apache-2.0 and so on.")
    ] = "",
    with_training_state: Annotated[
        bool, typer.Option("--with-training-state", help="Send train/ too, to go on elsewhere.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and print the plan; send nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Push a checkpoint or an exported folder to the Hugging Face Hub.

    The folder is checked first; what is not part of the model stays. Of the model that was there
    the files that this one lacks are deleted. The token is that of `hf auth login` or HF_TOKEN.
    Prints the address of the commit.

    \b
    Examples:
      cambrian push runs/bard hf://me/bard --license mit --dry-run
      cambrian push runs/bard hf://me/bard --license mit
      cambrian push runs/bard-onnx hf://me/bard --revision onnx --private
    """
    from cambrian import pushing
    from cambrian.cli.progress import say

    planned = pushing.plan(
        folder,
        address,
        revision=revision,
        license=license_,
        with_training_state=with_training_state,
    )
    if dry_run:
        show(planned, None, as_json)
        return
    for line in remarks(planned):
        say(line)
    if not sys.stderr.isatty():
        quiet()
    done = pushing.push(
        planned, private=private, pull_request=pull_request, message=message, report=say
    )
    conclude(done)
    show(planned, done, as_json)


def conclude(done: Pushed) -> None:
    """Say what a push left as it was."""
    from cambrian.cli.progress import say

    if done.stays:
        say(f"stays in the repository, unchanged: {', '.join(done.stays)}")
    if not done.changed:
        say("nothing has changed since the last push; no commit was made")


def quiet() -> None:
    """Keep the client's bars off what is no terminal."""
    from cambrian.hub import client

    client.endpoint()  # so that a wrong setting is told before the client is imported
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()


def remarks(planned: Plan) -> list[str]:
    """What stays and what to know, a line each."""
    left = [f"left out: {text.printable(name)} ({why})" for name, why in planned.left.items()]
    return [*left, *(f"note: {text.printable(note)}" for note in planned.notes)]


def show(planned: Plan, done: Pushed | None, as_json: bool) -> None:
    """Print the plan, or after a push the commit's address."""
    if as_json:
        text.as_json(facts(planned, done))
    elif done is None:
        text.table(["FILE", "BYTES"], [(f.name, f"{f.size:,}") for f in planned.files])
        typer.echo(f"{len(planned.files)} files would go to {planned.location}")
        for line in remarks(planned):
            typer.echo(line)
    else:
        typer.echo(str(done.location))
        if done.pull_request is not None:
            typer.echo(text.printable(done.pull_request))


def facts(planned: Plan, done: Pushed | None) -> dict[str, Any]:
    """The same for a script; without a push `address` is null."""
    return {
        "address": None if done is None else str(done.location),
        "changed": None if done is None else done.changed,
        "pull_request": None if done is None else done.pull_request,
        "target": str(planned.location),
        "files": [{"name": f.name, "bytes": f.size} for f in planned.files],
        "sent": None if done is None else list(done.sent),
        "deleted": None if done is None else list(done.deleted),
        "left_out": dict(planned.left),
        "notes": list(planned.notes),
    }
