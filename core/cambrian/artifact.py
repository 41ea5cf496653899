"""An exported folder: its graphs' signatures, its files' hashes, its receipt.

    manifest.json   golden.safetensors   the graphs' files   config.json, processor files, README.md

An export that failed its verification has rejected.json in place of manifest.json, so that
nothing opens it by mistake.

Nothing here imports torch: an artifact describes itself to whatever engine opens it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from cambrian.errors import BrokenFile, NotFound
from cambrian.files import read_json, sha256, write_json

TERM = re.compile(
    r"((?P<factor>\d{1,9}) *\* *)?(?P<name>[a-zA-Z_]\w*)|(?P<number>\d{1,18})", re.ASCII
)
MANIFEST = "manifest.json"
REJECTED = "rejected.json"


@dataclass(frozen=True)
class Port:
    """One named tensor of a graph. `dtype` is numpy's name of it.

    A dimension is a number, a name ("batch"), a multiple of a name ("8*height"), or a sum of such
    ("past + sequence"). Raises ValueError where one is none of these.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __post_init__(self) -> None:
        for dim in self.shape:
            terms(dim)


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What a graph takes and gives.

    `state` maps an output to the input it feeds in a later call (of this or another graph), as
    `present.0.key` feeds `past_key_values.0.key`. A session keeps such values on its device.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    state: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class GraphFile:
    """A graph as exported: the file that holds it (relative to the folder) and its signature.

    `length`, if not empty, is an input of the file beyond the signature, int32 (1,): how many
    entries of the state that grows are filled. Such a file writes the new entries in place, into
    buffers that are longer than what is filled.
    """

    file: str
    signature: Signature
    length: str = ""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """manifest.json. `files` maps names to sha256; `receipt` is what verification found."""

    format: str
    architecture: str
    task: str
    precision: str
    graphs: Mapping[str, GraphFile]
    files: Mapping[str, str]
    receipt: Mapping[str, Any]
    cambrian: str

    def write(self, file: Path) -> None:
        """Write the manifest as `file`."""
        write_json(file, msgspec.to_builtins(self))


@dataclass(frozen=True)
class Artifact:
    """An exported folder, opened: its description, not its weights."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> Artifact:
        """Read the manifest; NotFound if there is none, BrokenFile if it is malformed."""
        file = path / MANIFEST
        if not file.is_file():
            raise NotFound(f"{path} is not an exported folder: it has no {MANIFEST}.")
        try:
            manifest = msgspec.convert(read_json(file), Manifest)
        except msgspec.ValidationError as error:
            raise BrokenFile(f"{file} is malformed ({error}). Export the model again.") from error
        for name in [*manifest.files, *(graph.file for graph in manifest.graphs.values())]:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise BrokenFile(f"{file} names '{name}', which lies outside the folder.")
        for graph in manifest.graphs.values():
            outputs = {port.name for port in graph.signature.outputs}
            if missing := graph.signature.state.keys() - outputs:
                raise BrokenFile(f"{file} names '{min(missing)}' as state, which is no output.")
        return cls(path, manifest)

    def check(self) -> None:
        """Compare every file with the manifest; BrokenFile names the first that differs."""
        for name in [graph.file for graph in self.manifest.graphs.values()]:
            if name not in self.manifest.files:
                raise BrokenFile(f"{self.path / MANIFEST} has no hash of {name}. Export again.")
        for name, expected in self.manifest.files.items():
            file = self.path / name
            if not file.is_file():
                raise BrokenFile(f"{file} is missing. Copy it again, or export the model again.")
            if sha256(file) != expected:
                raise BrokenFile(
                    f"{file} is not the file that was exported: its sha256 differs from the one "
                    f"in {MANIFEST}. Copy it again, or export the model again."
                )


@functools.cache
def terms(dim: int | str) -> tuple[tuple[int, str], ...]:
    """A dimension as what adds up to it: (factor, name), where a plain number has no name ("").

    ValueError if it is not of a form that `Port` knows.
    """
    found: list[tuple[int, str]] = []
    for term in str(dim).split("+"):
        match = TERM.fullmatch(term.strip())
        if match is None:
            raise ValueError(f"{dim!r} is no dimension: neither number, name, multiple nor sum")
        found.append((int(match["factor"] or match["number"] or 1), match["name"] or ""))
    return tuple(found)


def growing(signature: Signature) -> dict[str, tuple[int, int | str]]:
    """The state that each call makes longer: the input that holds it, the axis that it grows by,
    and what the axis is then ("past + sequence", where it was "past")."""
    inputs = {port.name: port.shape for port in signature.inputs}
    outputs = {port.name: port.shape for port in signature.outputs}
    found: dict[str, tuple[int, int | str]] = {}
    for output, name in signature.state.items():
        pairs = zip(inputs.get(name, ()), outputs[output], strict=False)
        for axis, (before, after) in enumerate(pairs):
            if before != after and terms(before)[0] in terms(after):
                found[name] = axis, after
    return found


def resolve_shape(shape: tuple[int | str, ...], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Give each dimension its number; names that `sizes` lacks count 0."""

    def number(dim: int | str) -> int:
        return sum(factor * (sizes.get(name, 0) if name else 1) for factor, name in terms(dim))

    return tuple(dim if isinstance(dim, int) else number(dim) for dim in shape)
