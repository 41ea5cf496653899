"""The command line: one file a verb, each imported only when its verb is used.

Results go to standard output, everything else to standard error. Every CambrianError is one
sentence and its exit code; 2 means that the request was wrong, 130 that it was interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cambrian import __version__
from cambrian.cli.commands import VERBS, load_verb, plugin_commands
from cambrian.errors import CambrianError, NotFound, UsageError, nearest


class Verbs(TyperGroup):
    """Cambrian's own verbs and, asked for only where they matter, the plugins' commands."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, our own first."""
        return [*VERBS, *plugin_commands().found]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Load one command."""
        if cmd_name in VERBS:
            return load_verb(cmd_name)
        return plugin_commands().found.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As Typer's, but a wrong name gets our sentence."""
        name = args[0]
        if name not in VERBS and not name.startswith("-"):
            commands = plugin_commands()
            if name in commands.refused:
                raise UsageError(commands.refused[name])
            if name not in commands.found:
                hint = nearest(name, self.list_commands(ctx))
                raise NotFound(f"There is no command '{name}'.{hint} See `cambrian --help`.")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The help's list of commands, from the table alone."""
        rows = [(name, verb.help) for name, verb in VERBS.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
        if more := [(n, c.get_short_help_str(60)) for n, c in plugin_commands().found.items()]:
            with formatter.section("Commands of plugins"):
                formatter.write_dl(more)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; Ctrl-C ends it with one line, which says what its notes say."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            notes = getattr(error, "__notes__", ())
            typer.echo("; ".join(["interrupted", *notes]), err=True)
            raise typer.Exit(130) from None

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line; no traceback reaches the user."""
        with one_line_errors():
            return super().main(*args, **extra)


@contextmanager
def one_line_errors() -> Generator[None]:
    """Turn exceptions into one line on standard error and an exit code."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except CambrianError as error:
        fail(f"error: {error}", error.exit_code, error)
    except BrokenPipeError:  # whoever read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:  # a path that cannot be read or written
        what = error.filename or "a file"
        fail(f"error: Cannot use {what}: {error.strerror or error}.", 1, error)
    except MemoryError as error:
        reason = " ".join(f": {error}".split()) if str(error) else ""
        fail(f"error: There is not enough memory for this{reason}; ask for less at once.", 1, error)
    except Exception as error:
        text = " ".join(str(error).split())
        fail(
            f"internal error: {type(error).__name__}: {text[:500]} Set CAMBRIAN_TRACEBACK=1 for "
            "the traceback, and report it together with the output of `cambrian env`.",
            1,
            error,
        )


def fail(line: str, code: int, error: Exception) -> None:
    """Print the line (and the traceback, where CAMBRIAN_TRACEBACK asks for it) and exit.

    What a file says of itself may be in it: ends of lines and terminal's codes become blanks.
    """
    if os.environ.get("CAMBRIAN_TRACEBACK"):
        import traceback

        traceback.print_exception(error)
    typer.echo("".join(c if c.isprintable() else " " for c in line), err=True)
    raise SystemExit(code) from None


def show_version(wanted: bool) -> None:
    """--version."""
    if wanted:
        typer.echo(f"cambrian {__version__}")
        raise typer.Exit()


def switch_off_plugins(wanted: bool) -> None:
    """--no-plugins: for this process and those it starts."""
    if wanted:
        from cambrian.discovery import THIRD_PARTY, VARIABLE

        named = os.environ.get(VARIABLE, "")
        os.environ[VARIABLE] = f"{named},{THIRD_PARTY}" if named else THIRD_PARTY


app = typer.Typer(
    name="cambrian",
    cls=Verbs,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def cambrian(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Print the version."),
    ] = False,
    no_plugins: Annotated[
        bool,
        typer.Option(
            "--no-plugins",
            callback=switch_off_plugins,
            is_eager=True,
            help="Leave third-party plugins alone, as CAMBRIAN_DISABLE_PLUGINS='*' does.",
        ),
    ] = False,
) -> None:
    """A plugin-based model zoo: from raw data to a verified, fast ONNX artifact.

    \b
    Examples:
      cambrian list 'gpt*'                 what there is
      cambrian train gpt-demo              from raw text, into runs/gpt-demo
      cambrian export runs/gpt-demo        to ONNX, proved equal to the model
      cambrian run runs/gpt-demo-onnx "The class "
      cambrian plugins                     who provides what, and what is broken
    """


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    app(prog_name="cambrian")
