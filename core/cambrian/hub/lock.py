"""cambrian.lock: the exact revision and files of the models that a project uses.

    version = 1

    [models."gpt2"]
    repo = "openai-community/gpt2"
    revision = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
    requested = "main"
    license = "mit"
    [models."gpt2".files]
    "config.json" = {size = 665, sha256 = "..."}

`requested` is the branch, tag or commit that was asked for when it was locked; a lock without it is
read, too. It is written by `cambrian lock`, belongs into version control, and is not for editing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec

from cambrian.errors import BrokenFile, CambrianError
from cambrian.files import cache_folder, write_bytes
from cambrian.hub.listing import INDEX, MANIFEST
from cambrian.hub.location import Location
from cambrian.toml import parse_toml
from cambrian.torch_files import torch_name

LOCK = "cambrian.lock"
LIMIT = 1 << 20  # bytes; a lock of 100 models has 100 kB
PART = r"[^./\\:\x00-\x1f][^/\\:\x00-\x1f]{0,200}"  # of a name, between its /
FILE_NAME = Annotated[str, msgspec.Meta(pattern=rf"^({PART}/){{0,7}}{PART}\Z")]
REVISION = Annotated[str, msgspec.Meta(pattern=r"^(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9_./-]*\Z")]


@dataclass(frozen=True)
class PinnedFile:
    """A file's size in bytes and sha256 in hex."""

    size: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Pin:
    """A repository at a commit, and every file of it that is used. `requested` is the revision that
    was asked for; "" where an older lock does not tell."""

    repo: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")]
    revision: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{40}$")]
    files: Mapping[FILE_NAME, PinnedFile]
    license: str = ""
    requested: REVISION = ""

    @property
    def location(self) -> Location:
        """Where it is."""
        return Location(self.repo, self.revision)

    @property
    def hashes(self) -> dict[str, str]:
        """The sha256 (hex) of each file."""
        return {name: file.sha256 for name, file in self.files.items()}

    def whole(self, weights: Sequence[str]) -> bool:
        """Whether it holds an exported folder's manifest, or config.json and weights that have one
        of these names or its twin's; which shards an index names, it does not tell."""
        names = {*weights, *map(torch_name, weights)}
        known = names | {name + INDEX for name in names}
        return MANIFEST in self.files or (
            "config.json" in self.files and bool(known & {*self.files})
        )


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
            with file.open("rb") as opened:
                return cls.parse(opened.read(LIMIT + 1))
        except OSError as error:
            raise BrokenFile(f"Cannot read {file}: {error.strerror}.") from error
        except ValueError as error:
            raise BrokenFile(
                f"{file} is no lock ({error}). Make it anew: delete it and run `cambrian lock`."
            ) from error

    @classmethod
    def parse(cls, data: bytes) -> Lock:
        """Read its bytes; ValueError if they are no lock."""
        if len(data) > LIMIT:
            raise ValueError(f"it has more than {LIMIT} bytes")
        return msgspec.convert(parse_toml(data.decode()), cls)

    def write(self, file: Path) -> None:
        """Write it whole: by name, so that equal pins give equal bytes. CambrianError for what
        `read` would refuse, such as a file's name of more than 201 characters."""
        try:
            data = self.text().encode()
            self.parse(data)
        except ValueError as error:
            raise CambrianError(
                f"{file} could not be read again ({error}), so nothing was written. Leave out the "
                "model that is the cause: name its commit where you use it."
            ) from error
        write_bytes(file, data)

    def text(self) -> str:
        """As TOML."""
        lines = ["# Written by `cambrian lock`; not for editing.", f"version = {self.version}"]
        for name, pin in sorted(self.models.items()):
            lines += ["", f"[models.{_quoted(name)}]"]
            keys = ("repo", "revision", "requested", "license")
            facts = {key: getattr(pin, key) for key in keys}
            lines += [f"{key} = {_quoted(value)}" for key, value in facts.items() if value]
            lines.append(f"[models.{_quoted(name)}.files]")
            lines += [
                f'{_quoted(held)} = {{size = {file.size}, sha256 = "{file.sha256}"}}'
                for held, file in sorted(pin.files.items())
            ]
        return "\n".join(lines) + "\n"


@contextmanager
def alone(file: Path) -> Generator[None]:
    """Have other processes wait that want to change the same lock; OSError passes. What they wait
    for lies in our cache, so that no project holds a file that nobody put there."""
    from huggingface_hub.utils import WeakFileLock

    key = hashlib.sha256(os.fsencode(file.resolve())).hexdigest()[:32]
    guard = cache_folder("locks") / f"{key}.lock"
    guard.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(guard):
        yield


def _quoted(text: str) -> str:
    """A string of TOML: JSON's, but that characters beyond 16 bits are not in halves and the
    delete character is escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
