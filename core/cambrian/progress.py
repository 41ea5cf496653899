"""How far long work is, told to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Progress = Callable[[str, int, int], None]  # of what, how many are done, of how many
T = TypeVar("T")


def untold(what: str, done: int, total: int) -> None:
    """A Progress for nobody."""


def told(things: Sequence[T], what: str, progress: Progress) -> Iterator[T]:
    """The things one by one; how many are done is told before each, and in the end."""
    for number, thing in enumerate(things):
        progress(what, number, len(things))
        yield thing
    progress(what, len(things), len(things))
