"""What was verified once, so that the next start costs a stat and no hashing.

A record guards against accidents (a truncated blob, an edited file), not against somebody who can
write to the cache and to the records. Any difference means: hash again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cambrian.errors import BrokenFile
from cambrian.files import cache_folder, read_json, write_json
from cambrian.hub.layout import Layout

VERIFIED = "verified"


@dataclass(frozen=True)
class Verified:
    """A file that had this sha256 (hex) when it had this device, inode, size and time (ns)."""

    sha256: str
    size: int
    stat: tuple[int, int, int, int]

    def fresh(self, path: Path) -> bool:
        """Whether the file is as it was."""
        try:
            return state(path) == self.stat
        except OSError:
            return False


@dataclass(frozen=True)
class Record:
    """The files of a commit that were wanted once and verified then.

    They are all that a model needs if `weights` are those looked for; () if only some were wanted.
    `strange` are the names that lay in the commit before, put there by another program.
    """

    repo: str
    commit: str
    files: Mapping[str, Verified]
    license: str = ""
    weights: tuple[str, ...] = ()
    strange: tuple[str, ...] = ()

    @classmethod
    def read(cls, layout: Layout, commit: str) -> Record | None:
        """None if nothing was verified yet, or the record is damaged."""
        record = cls.open(record_path(layout, commit))
        if record is None or (record.repo, record.commit) != (layout.repo, commit):
            return None
        return record

    @classmethod
    def open(cls, file: Path) -> Record | None:
        """None if it is missing or damaged."""
        try:
            return msgspec.convert(read_json(file, limit=8 << 20), cls)
        except (BrokenFile, msgspec.ValidationError):
            return None

    def write(self, layout: Layout) -> None:
        """Keep it; a disk that cannot be written costs only the next start's hashing."""
        with suppress(OSError):
            write_json(record_path(layout, self.commit), msgspec.to_builtins(self))


def record_path(layout: Layout, commit: str) -> Path:
    """One record for a commit of a repository in a cache."""
    key = hashlib.sha256(os.fsencode(f"{layout.folder.absolute()}\0{commit}")).hexdigest()
    return cache_folder(VERIFIED) / f"{key[:32]}.json"


def state(path: Path) -> tuple[int, int, int, int]:
    """What changes when a file's content does: device, inode, size and modification time (ns)."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
