"""What a run of the conformance kit found of a plugin, as a file beside the plugin's code.

A package keeps it as conformance.json in its own folder, so that its wheel ships it; a module x.py,
and a plugin x that is a part of a package, as x.conformance.json. It is the author's word until
somebody runs the kit again (`pytest --cambrian NAME`), and it speaks of the code whose hash it
holds and of no other.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import msgspec

from cambrian.errors import BrokenFile

LIMIT = 1 << 20  # bytes
NAME = "conformance.json"


class Conformance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One plugin's record. `checks` holds "passed", "failed" or "skipped" by subject and check;
    `failures` the sentences of those that failed. `date` is that of the run (ISO 8601)."""

    plugin: str
    distribution: str
    version: str
    code_sha256: str
    date: str
    cambrian: str
    torch: str
    python: str
    platform: str
    checks: dict[str, dict[str, str]]
    failures: dict[str, str] = {}

    def count(self, outcome: str) -> int:
        """How many checks ended so."""
        return sum(o == outcome for checks in self.checks.values() for o in checks.values())

    def shown(self, code: str) -> str:
        """A cell of a table: "24/24, cambrian 0.1.0, 2026-11-27"; "stale" where the code, by its
        hash, is not what was checked."""
        if code != self.code_sha256:
            return "stale: its code has changed since"
        ran = self.count("passed") + self.count("failed")
        left = f", {skipped} skipped" if (skipped := self.count("skipped")) else ""
        return f"{self.count('passed')}/{ran}{left}, cambrian {self.cambrian}, {self.date[:10]}"


def record_file(plugin: str, target: str) -> Path | None:
    """Where the record of a loaded plugin lies, by its name and its entry point's target; None if
    it has no file of its own.

    Of a plugin that is a whole package that is conformance.json in it; a part of a package has its
    name before that.
    """
    module, colon, _ = target.partition(":")
    names = module.strip().split(".")
    for depth in range(1, len(names) + 1):
        source = getattr(sys.modules.get(".".join(names[:depth])), "__file__", None)
        if not source:
            continue  # a namespace, or nothing that was imported
        file = Path(source)
        if file.stem != "__init__":
            return file.with_suffix(f".{NAME}")
        whole = depth == len(names) and not colon
        return file.with_name(NAME if whole else f"{plugin}.{NAME}")
    return None


def code_sha256(record: Path) -> str:
    """The hash of what a record beside it speaks of: every file of the package, save records and
    what Python compiled, or the one module. OSError passes."""
    if (record.parent / "__init__.py").is_file():
        files = [
            path
            for path in sorted(record.parent.rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts and not path.name.endswith(NAME)
        ]
    else:
        files = [record.with_name(record.name.replace(NAME, "py"))]
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        name = file.relative_to(record.parent).as_posix()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def read_record(file: Path) -> Conformance | None:
    """The record in a file; None if there is none, BrokenFile if it is malformed."""
    try:
        if file.stat().st_size > LIMIT:
            raise BrokenFile(f"{file} has more than {LIMIT} bytes; that is no record of checks.")
        return msgspec.json.decode(file.read_bytes(), type=Conformance)
    except (FileNotFoundError, NotADirectoryError):  # the latter in a zip
        return None
    except OSError as error:
        raise BrokenFile(f"Cannot read {file}: {error.strerror}.") from error
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BrokenFile(f"{file} is no record of checks ({error}); delete it.") from error


def write_record(file: Path, record: Conformance) -> None:
    """Write a record; OSError passes."""
    from cambrian.files import write_json

    write_json(file, msgspec.to_builtins(record))
