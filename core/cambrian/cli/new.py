"""cambrian new"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from cambrian.cli.commands import new_app
from cambrian.cli.progress import say

app = new_app()


@app.callback()
def new() -> None:
    """Begin a plugin of your own.

    \b
    Example:
      cambrian new plugin my-net
    """


@app.command()
def plugin(
    name: Annotated[str, typer.Argument(help="Of the model and the plugin: my-net.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write. [default: cambrian-NAME]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is in the folder.")] = False,
) -> None:
    """Write a plugin: an installable, tested package with one small model, to be changed.

    \b
    Example:
      cambrian new plugin my-net
      cd cambrian-my-net
      pip install --editable '.[test]' && pytest
      cambrian train my-net && cambrian export runs/my-net
    """
    from cambrian.errors import UsageError
    from cambrian.registry import load_registry
    from cambrian.scaffold import new_plugin

    name = name.removeprefix("cambrian-")
    registry = load_registry()
    if name in registry.models or name in registry.entries:
        raise UsageError(f"There is a model '{name}' already; choose another name.")
    package = f"cambrian_{name.replace('-', '_')}"
    if name in {row.name for row in registry.plugins.rows} or find_spec(package):
        raise UsageError(f"There is a plugin '{name}' already; choose another name.")
    folder = out or Path(f"cambrian-{name}")
    for file in new_plugin(name, folder, force=force):
        typer.echo(folder / file)
    say(f"next: cd {folder} && pip install --editable '.[test]' && pytest")
