"""What preparing text has cost once: hashes of files, and folders of tokens by content."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cambrian.data.sources import File, Report
from cambrian.files import PARTIAL, disk_failure, publish_folder

T = TypeVar("T")
DAY = 24 * 3600.0  # seconds
SETTLED = 2 * 10**9  # ns; the coarsest file system clock


class Hashes:
    """The sha256 of files, remembered by path, size, modification time and inode.

    A file that was modified within the last two seconds is not remembered: it could change again
    without its time showing it.
    """

    def __init__(self, path: Path) -> None:
        """Open the table at `path`; a damaged one is begun anew."""
        try:
            self._table = _open_table(path)
        except sqlite3.DatabaseError:
            path.unlink(missing_ok=True)
            self._table = _open_table(path)
        self._new: list[tuple[bytes, str, str, bool]] = []

    def hash(self, file: File, report: Report) -> tuple[str, bool]:
        """Return (sha256 in hex, whether it is binary), reading the file only where needed."""
        path, before = os.fsencode(Path(file.path).resolve()), file.state()
        row = self._table.execute(
            "SELECT sha256, binary FROM files WHERE path = ? AND state = ?", (path, before)
        ).fetchone()
        if row is not None:
            return str(row[0]), bool(row[1])
        digest, binary = file.hash(report)
        file.require(before)
        if time.time_ns() - file.stat().st_mtime_ns > SETTLED:
            self._new.append((path, before, digest, binary))
        return digest, binary

    def close(self) -> None:
        """Keep what was learned, unless another process holds the table for long."""
        try:
            with self._table:
                self._table.executemany("INSERT OR REPLACE INTO files VALUES (?,?,?,?)", self._new)
        except sqlite3.OperationalError:
            pass  # the next run reads these files again, which costs time alone
        finally:
            self._table.close()


def open_or_build(
    folder: Path, load: Callable[[Path], T | None], build: Callable[[Path], None]
) -> tuple[T, bool]:
    """Return (what `load` makes of `folder`, whether it was there).

    `load` returns None for a folder that is missing or damaged; then `build` fills a temporary
    one, which takes its place. Of processes that build the same at once, one is kept.
    """
    if (found := load(folder)) is not None:
        return found, True
    _remove_abandoned(folder.parent)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}{PARTIAL}", dir=folder.parent))
    failure = OSError("it vanished")
    try:
        build(staging)
        if load(folder) is None:
            publish_folder(staging, folder)
    except OSError as error:
        failure = error
    except sqlite3.Error as error:
        failure = OSError(str(error))
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    for _ in range(50):  # while another process is putting its own in this place
        if (found := load(folder)) is not None:
            return found, False
        time.sleep(0.02)
    raise disk_failure(failure, f"the token cache {folder}")


def _open_table(path: Path) -> sqlite3.Connection:
    table = sqlite3.connect(path, timeout=10)
    try:
        with table:
            table.execute(
                "CREATE TABLE IF NOT EXISTS files "
                "(path BLOB PRIMARY KEY, state TEXT, sha256 TEXT, binary INTEGER)"
            )
    except sqlite3.DatabaseError:
        table.close()
        raise
    return table


def _remove_abandoned(parent: Path) -> None:
    """Free the disk of what killed processes left: folders that nothing wrote to for a day."""
    for folder in parent.glob(f".*{PARTIAL}*"):
        try:
            newest = max(path.stat().st_mtime for path in [folder, *folder.iterdir()])
        except OSError:  # its process is alive and has just removed or renamed it
            continue
        if time.time() - newest > DAY:
            shutil.rmtree(folder, ignore_errors=True)
