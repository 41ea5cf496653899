"""Which commands there are: our own by a table, the plugins' by their hook."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import typer

from cambrian.plugins import load_plugins
from cambrian.specs import Ref


class Verb(NamedTuple):
    """A command's function (or Typer app) and its line in the help."""

    target: Ref[Any]
    help: str


def verb(target: str, help_line: str) -> Verb:
    """A row of the table."""
    return Verb(Ref(f"cambrian.cli.{target}"), help_line)


VERBS = {  # the help's lines are here too, so that --help imports none of them
    "list": verb("listing:list_", "List models and data sets."),
    "info": verb(
        "info:info",
        "Show all that is known of a model, data set, folder, trainer, exporter or engine.",
    ),
    "train": verb("train:train", "Train a model, or go on with a run that was stopped."),
    "eval": verb("evaluate:evaluate", "Measure a model on held-out data."),
    "export": verb("export:export", "Export a model and prove that the export equals it."),
    "verify": verb("verify:verify", "Prove an exported folder on this machine, without torch."),
    "run": verb("run:run", "Run a model: an exported one on its engine, a checkpoint on torch."),
    "bench": verb("bench:bench", "Measure how fast a model is on this machine, by engine."),
    "push": verb("push:push", "Push a checkpoint or an exported folder to the Hugging Face Hub."),
    "pull": verb("pull:pull", "Fetch models from the Hugging Face Hub, verified."),
    "lock": verb("lock:lock", "Pin a project's models to commits and hashes, in cambrian.lock."),
    "cache": verb("cache:app", "Show, verify and free what Cambrian keeps on this disk."),
    "new": verb("new:app", "Begin a plugin of your own."),
    "plugins": verb("plugins:app", "List plugins: what each registers, and what is wrong with it."),
    "env": verb("env:env", "Show versions and hardware, to be put into a report."),
}


class PluginCommands:
    """The plugins' commands by name; names that clash are refused with a sentence."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self.refused: dict[str, str] = {}


def new_app() -> typer.Typer:
    """An app that looks like ours."""
    return typer.Typer(add_completion=False, rich_markup_mode=None)


def load_verb(name: str) -> Any:
    """Import one verb's module and make its command."""
    target = VERBS[name].target.load()
    if not isinstance(target, typer.Typer):
        app = new_app()
        app.command(name)(target)
        target = app
    return typer.main.get_command(target)


@cache
def plugin_commands() -> PluginCommands:
    """Ask the plugins for their commands, once a process."""
    plugins = load_plugins()
    commands = PluginCommands()
    owners: dict[str, int] = {}
    for row, built in plugins.run("register_commands", build):
        for name, command in built.items():
            if name in VERBS:
                plugins.report(
                    row,
                    "clash",
                    f"its command '{name}' would hide Cambrian's own",
                    f"Disable it: cambrian plugins disable {plugins.rows[row].name}.",
                )
            elif name in owners:
                what = f"command '{name}'"
                commands.refused[name] = plugins.clash(owners[name], row, what)
                commands.found.pop(name, None)
            else:
                owners[name] = row
                commands.found[name] = command
                plugins.record(row, f"command {name}")
    return commands


def build(register: Callable[..., Any]) -> dict[str, Any]:
    """Let a plugin add commands to an app of its own, and make them."""
    app = new_app()
    app.callback()(lambda: None)  # keeps an app with one command a group
    register(app)
    group: Any = typer.main.get_command(app)
    for command in group.commands.values():
        command.get_short_help_str(60)  # what --help will ask for, while a failure is still theirs
    return dict(group.commands)
