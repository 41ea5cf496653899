"""cambrian lock"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cambrian.cli import text
from cambrian.cli.completion import complete_model

if TYPE_CHECKING:
    from cambrian.hub import Lock


def lock(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME...",
            help="Models to lock beside those of cambrian.toml and of the lock.",
            autocompletion=complete_model,
            show_default=False,
        ),
    ] = None,
    upgrade: Annotated[
        bool, typer.Option("--upgrade", help="Ask anew where branches and tags are.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit code 1 if the lock is outdated.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Pin a project's models to commits and hashes, in cambrian.lock.

    It holds the size and sha256 of every file. From then on these models come as the lock has
    them, for every command in this folder. No weights are fetched. What is locked already stays
    where it is, unless cambrian.toml says otherwise, or with --upgrade; what is declared no longer
    is dropped. --check needs no network.

    \b
    Examples:
      cambrian lock gpt2 hf://google-t5/t5-small
      cambrian lock --upgrade
      cambrian lock --check && cambrian pull --locked
    """
    from cambrian import pulling
    from cambrian.cli.progress import Downloads

    if check:
        before = after = pulling.check_lock(names or ())
    else:
        with Downloads() as downloads:
            before, after = pulling.lock(names or (), upgrade=upgrade, report=downloads.report)
    changes, dropped = changed(before, after), sorted(before.models.keys() - after.models.keys())
    if as_json:
        pins = {name: str(pin.location) for name, pin in sorted(after.models.items())}
        text.as_json({"models": pins, "changed": changes, "dropped": dropped})
        return
    rows = [
        (name, str(pin.location), f"{sum(file.size for file in pin.files.values()):,}")
        for name, pin in sorted(after.models.items())
    ]
    text.table(["MODEL", "ADDRESS", "BYTES"], rows)
    if not check:
        typer.echo(f"changed: {', '.join(changes) or 'nothing'}")
    if dropped:
        typer.echo(f"dropped, as declared nowhere any more: {', '.join(dropped)}")


def changed(before: Lock, after: Lock) -> list[str]:
    """The names whose pins are new or other than before."""
    return [n for n, pin in sorted(after.models.items()) if before.models.get(n) != pin]
