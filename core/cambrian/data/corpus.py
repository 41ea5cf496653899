"""A corpus: sources read as units of text, each once, each on its side of the split."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from cambrian.data.config import TextData
from cambrian.data.sections import sections
from cambrian.data.sources import File, Source

Progress: TypeAlias = Callable[[str, int, int], None]
"""progress(phase, done, total): bytes of the sources, in the phases below."""
HASHING, TRAINING, ENCODING = "hashing", "tokenizer", "tokens"


class Meter:
    """Adds the positions within each source up to one count for a `Progress`."""

    def __init__(self, phase: str, sources: Sequence[Source], progress: Progress | None) -> None:
        """`sources` are gone through in this order."""
        self._phase = phase
        self._total = sum(source.size for source in sources)
        self._progress = progress
        self._base = 0

    def at(self, position: int) -> None:
        """Report a position in the present source."""
        if self._progress is not None:
            self._progress(self._phase, min(self._base + position, self._total), self._total)

    def next(self, source: Source) -> None:
        """Leave the present source behind."""
        self._base += source.size
        self.at(0)


class Unit(NamedTuple):
    """A document or a section of a long one.

    new: False for a duplicate, which carries no text. begins: the first new one of its document.
    ends: after it the document is over, on the side that holds its last new section.
    rank: its place among all content; the lowest are held out.
    """

    text: str
    held_out: bool
    new: bool
    begins: bool
    ends: bool
    rank: int


class Seen:
    """The digests met so far, in a table on disk so that memory stays flat."""

    def __init__(self, path: Path) -> None:
        """`path` is a new file; it is worth nothing after a crash and so never synced."""
        # training a tokenizer pulls text from a thread of its own, one call at a time
        self._table = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-16000"):
            self._table.execute(f"PRAGMA {pragma}")
        self._table.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        self._table.execute("BEGIN")

    def add(self, digest: bytes) -> bool:
        """Whether `digest` is new."""
        row = self._table.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,))
        return row.rowcount == 1

    def close(self) -> None:
        """Close the table; its file is the caller's to remove."""
        self._table.close()


@dataclass(frozen=True)
class Corpus:
    """The sources of a run: `train`, and `held_out` where these are given and not split off.

    contents: each source's form and sha256, by split. states: the files as they were hashed.
    least: ranks up to this one are held out whatever the fraction.
    """

    data: TextData
    train: Sequence[Source]
    held_out: Sequence[Source]
    contents: Sequence[Sequence[str]]
    states: Sequence[tuple[File, str]]
    least: int = -1

    @property
    def sources(self) -> tuple[Source, ...]:
        """All sources in the order in which they are read."""
        return (*self.train, *self.held_out)

    def units(self, seen: Seen | None, meter: Meter) -> Iterator[Unit]:
        """Read everything once, in order."""
        for number, source in enumerate(self.sources):
            given = number >= len(self.train)
            yield from self._units(source, given, seen, meter)
            meter.next(source)

    def _units(
        self, source: Source, given: bool, seen: Seen | None, meter: Meter
    ) -> Iterator[Unit]:
        side: bool | None = None  # of the document's last section that was kept
        for text, first, last in sections(source.chunks(self.data.text_key, meter.at), self.data):
            if first:
                side = None
                if last and not text.strip():
                    continue
            digest = hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
            if seen is None or seen.add(digest):
                begins = side is None
                side = given or self._by_content(digest)
                yield Unit(text, side, True, begins, last, rank(digest))
            else:
                yield Unit("", bool(side), False, False, last and side is not None, rank(digest))

    def _by_content(self, digest: bytes) -> bool:
        """Whether a digest falls in the held-out fraction, whatever else the corpus holds."""
        if self.held_out or not self.data.validation_fraction:
            return False
        return rank(digest) <= max(self.least, self.data.validation_fraction * 2**64 - 1)


def rank(digest: bytes) -> int:
    """A number below 2**64 that only the content decides."""
    return int.from_bytes(digest[:8], "big")
