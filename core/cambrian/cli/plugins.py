"""cambrian plugins"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cambrian.cli import text
from cambrian.cli.commands import new_app, plugin_commands
from cambrian.cli.completion import complete_plugin
from cambrian.conformance import code_sha256, read_record, record_file
from cambrian.contributions import PROVIDES
from cambrian.discovery import discover, normal, read_disabled, write_disabled
from cambrian.errors import CambrianError, NotFound, nearest
from cambrian.plugins import Plugin, load_plugins
from cambrian.registry import HOOK_OF, Problem, load_registry

app = new_app()

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A plugin's name or its distribution's.",
        autocompletion=complete_plugin,
        show_default=False,
    ),
]


@app.callback(invoke_without_command=True)
def plugins(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List plugins: what each registers, and what is wrong with it.

    \b
    Examples:
      cambrian plugins
      cambrian plugins disable some-plugin
      cambrian --no-plugins list
      CAMBRIAN_DISABLE_PLUGINS=a,b cambrian list
    """
    if ctx.invoked_subcommand is not None:
        return
    rows, faults = inspect_all()
    records = [recorded(row) for row in rows]
    if as_json:
        found = {
            "plugins": [
                {**row._asdict(), "conformance": record}
                for row, (_, record) in zip(rows, records, strict=True)
            ],
            "problems": [fault._asdict() for fault in faults],
        }
        text.as_json(found)
        return
    shown = [
        (row.name, row.distribution, row.version, row.status, cell, ", ".join(row.registers))
        for row, (cell, _) in zip(rows, records, strict=True)
    ]
    header = ("NAME", "DISTRIBUTION", "VERSION", "STATUS", "CONFORMANCE", "REGISTERS")
    text.table(header, shown)
    text.problems(
        [
            Problem(origin=r.distribution, name=r.name, reason=r.reason, remedy=r.remedy)
            for r in rows
            if r.reason
        ]
        + faults
    )
    if any(row.notes for row in rows):
        typer.echo()
        typer.secho("NOTES", bold=True)
        for row in rows:
            for note in row.notes:
                text.paragraph(f"{row.name} ({row.distribution}): {note}")


def recorded(row: Plugin) -> tuple[str, dict[str, Any] | None]:
    """What the conformance kit last found of a plugin: a cell of the table, and the record."""
    import msgspec

    targets = {(c.name, c.distribution): c.target for c in discover()}
    file = record_file(row.name, targets.get((row.name, row.distribution), ""))
    if file is None:
        return "", None
    try:
        record = read_record(file)
        if record is None or record.plugin != row.name:
            return "", None
        code = code_sha256(file)
    except (CambrianError, OSError) as error:
        return f"unreadable: {error}", None
    return record.shown(code), {
        **msgspec.to_builtins(record),
        "stale": code != record.code_sha256,
    }


def inspect_all() -> tuple[tuple[Plugin, ...], list[Problem]]:
    """Call every hook of every plugin; return the rows, and the faults of files."""
    loaded = load_plugins()
    for hook in PROVIDES:
        loaded.provided(hook)
    plugin_commands()
    try:
        registry = load_registry()
        for kind in HOOK_OF:  # where two claim one name, this tells
            registry.origins(kind, "")
    except CambrianError as error:
        return loaded.rows, [Problem(origin="cambrian", name="", reason=str(error), remedy="")]
    return loaded.rows, list(registry.faults)


@app.command()
def disable(name: Name) -> None:
    """Switch a plugin off until it is enabled again; loads none.

    \b
    Example:
      cambrian plugins disable some-plugin
    """
    known = {normal(n) for c in discover() for n in (c.name, c.distribution)}
    if normal(name) not in known:
        raise NotFound(
            f"No plugin '{name}' is installed.{nearest(name, known)} See `cambrian plugins`."
        )
    write_disabled({*map(normal, read_disabled()), normal(name)})
    typer.echo(f"Disabled {name}. To undo: cambrian plugins enable {name}", err=True)


@app.command()
def enable(name: Name) -> None:
    """Switch a disabled plugin on again.

    \b
    Example:
      cambrian plugins enable some-plugin
    """
    disabled = {normal(n) for n in read_disabled()}
    if normal(name) not in disabled:
        raise NotFound(f"'{name}' is not disabled.{nearest(name, disabled)}")
    write_disabled(disabled - {normal(name)})
    typer.echo(f"Enabled {name}.", err=True)
