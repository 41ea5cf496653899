"""Writing without halves: a temporary name beside the target, fsync, rename."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cambrian.errors import BrokenFile, CambrianError, UsageError

PARTIAL = ".partial-"
JSON_LIMIT = 16 << 20  # bytes
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # one half of a character, as JSON writes it


def cache_folder(name: str) -> Path:
    """Where what can be made again is kept: `$XDG_CACHE_HOME/cambrian/NAME`, else in ~/.cache."""
    return own_folder("XDG_CACHE_HOME", ".cache") / name


def own_folder(variable: str, usual: str) -> Path:
    """The folder "cambrian" where `variable` says, else in `usual` of the user's home; UsageError
    if he has none."""
    try:
        return Path(os.environ.get(variable) or Path.home() / usual).expanduser() / "cambrian"
    except RuntimeError as error:
        raise UsageError(
            f"There is no home folder to keep anything in; set HOME, or {variable}."
        ) from error


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a temporary file, then put it in `path`'s place; OSError passes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}{PARTIAL}", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        fsync(temporary)
        temporary.replace(path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    write_with(path, lambda temporary: temporary.write_bytes(data))


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and programs: indented, in the order given, with a final newline."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """Read a JSON object of at most `limit` bytes; BrokenFile if it is anything else."""
    try:
        if (size := path.stat().st_size) > limit:
            raise BrokenFile(f"{path} has {size} bytes; more than {limit} cannot be right.")
        text = path.read_text("utf-8")
        value = json.loads(text)
        if SURROGATE.search(text):  # halves of characters are no text
            json.dumps(value, ensure_ascii=False).encode()
    except OSError as error:
        raise BrokenFile(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise BrokenFile(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(value, dict):
        raise BrokenFile(f"{path} must hold a JSON object, not {type(value).__name__}.")
    return value


@contextmanager
def staged_folder(target: Path) -> Generator[Path]:
    """Yield a temporary folder that takes `target`'s place if the block ends well.

    If the block fails nothing is left behind, unless it moved the folder elsewhere itself.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}{PARTIAL}", dir=target.parent))
    staging.chmod(0o755)
    try:
        yield staging
        publish_folder(staging, target)
    finally:
        if staging.exists():
            shutil.rmtree(staging, ignore_errors=True)


def publish_folder(staging: Path, target: Path) -> None:
    """Fsync everything below `staging` and rename it to `target`, replacing what is there."""
    for path in [*staging.rglob("*"), staging]:
        fsync(path)
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
        kept = old / target.name
        try:  # another process may be replacing it too: whoever comes second fails
            target.rename(kept)
            staging.rename(target)
        finally:
            if kept.exists() and not target.exists():
                kept.rename(target)
            shutil.rmtree(old, ignore_errors=True)
    else:
        staging.rename(target)
    fsync(target.parent)


def fsync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """The file's sha256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_free(out: Path, force: bool, hint: str) -> None:
    """Refuse an output that exists, unless `force`; UsageError ends with `hint`."""
    if out.exists() and not force and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already; {hint}")


def disk_failure(error: OSError, what: str) -> CambrianError:
    """Turn a failed write (disk full, read-only) into one sentence."""
    return CambrianError(f"Cannot write {what}: {error.strerror or error}.")
