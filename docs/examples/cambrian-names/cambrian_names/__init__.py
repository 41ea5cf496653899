"""Entries only: named models and a data set, in the form of Cambrian's own registry.toml."""

from pathlib import Path

from cambrian import hookimpl


@hookimpl
def register_entries() -> list[Path]:
    return [Path(__file__).with_name("registry.toml")]
