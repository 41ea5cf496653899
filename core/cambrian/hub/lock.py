"""cambrian.lock: the exact revision and files of the models that a project uses.

    version = 1

    [models."gpt2"]
    repo = "openai-community/gpt2"
    revision = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
    license = "mit"
    [models."gpt2".files]
    "config.json" = {size = 665, sha256 = "..."}

It is written by `cambrian lock`, belongs into version control, and is not for editing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec

from cambrian.errors import BrokenFile
from cambrian.files import write_bytes
from cambrian.hub.location import Location
from cambrian.toml import parse_toml

LOCK = "cambrian.lock"
LIMIT = 1 << 20  # bytes; a lock of 100 models has 100 kB
FILE_NAME = Annotated[str, msgspec.Meta(pattern=r"^[^./\\:\x00-\x1f][^/\\:\x00-\x1f]{0,200}$")]


@dataclass(frozen=True)
class PinnedFile:
    """A file's size in bytes and sha256 in hex."""

    size: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Pin:
    """A repository at a commit, and every file of it that is used."""

    repo: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")]
    revision: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{40}$")]
    files: Mapping[FILE_NAME, PinnedFile]
    license: str = ""

    @property
    def location(self) -> Location:
        """Where it is."""
        return Location(self.repo, self.revision)

    @property
    def hashes(self) -> dict[str, str]:
        """The sha256 (hex) of each file."""
        return {name: file.sha256 for name, file in self.files.items()}


@dataclass(frozen=True)
class Lock:
    """Pins by the name of a registry entry, or by the hf:// address of what has no name."""

    models: Mapping[str, Pin] = field(default_factory=dict[str, Pin])
    version: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1

    @classmethod
    def read(cls, file: Path) -> Lock:
        """An empty lock if there is none; BrokenFile if it cannot be read or is malformed."""
        if not file.exists():
            return cls()
        try:
            if file.stat().st_size > LIMIT:
                raise BrokenFile(f"{file} has more than {LIMIT} bytes; that is no lock.")
            return msgspec.convert(parse_toml(file.read_text("utf-8")), cls)
        except OSError as error:
            raise BrokenFile(f"Cannot read {file}: {error.strerror}.") from error
        except ValueError as error:
            raise BrokenFile(
                f"{file} is no lock ({error}). Make it anew: delete it and run `cambrian lock`."
            ) from error

    def write(self, file: Path) -> None:
        """Write it whole: by name, so that equal pins give equal bytes."""
        write_bytes(file, self.text().encode())

    def text(self) -> str:
        """As TOML."""
        lines = ["# Written by `cambrian lock`; not for editing.", f"version = {self.version}"]
        for name, pin in sorted(self.models.items()):
            lines += ["", f"[models.{_quoted(name)}]"]
            lines += [f"{key} = {_quoted(getattr(pin, key))}" for key in ("repo", "revision")]
            if pin.license:
                lines.append(f"license = {_quoted(pin.license)}")
            lines.append(f"[models.{_quoted(name)}.files]")
            lines += [
                f'{_quoted(held)} = {{size = {file.size}, sha256 = "{file.sha256}"}}'
                for held, file in sorted(pin.files.items())
            ]
        return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A string of TOML: JSON's, but that characters beyond 16 bits are not in halves and the
    delete character is escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
