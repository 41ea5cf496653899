"""An exported folder: its graphs' signatures, its files' hashes, its receipt.

    manifest.json   golden.safetensors   the graphs' files   config.json, processor files, README.md

Nothing here imports torch: an artifact describes itself to whatever engine opens it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from cambrian.errors import BrokenFile, NotFound

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Port:
    """One named tensor of a graph. `dtype` is numpy's name of it.

    A dimension is a number, a name ("batch"), or a sum of names and numbers ("past + sequence").
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


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
    """A graph as exported: the file that holds it (relative to the folder) and its signature."""

    file: str
    signature: Signature


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
            manifest = msgspec.convert(json.loads(file.read_text("utf-8")), Manifest)
        except (ValueError, msgspec.ValidationError) as error:
            raise BrokenFile(f"{file} is malformed ({error}). Export the model again.") from error
        return cls(path, manifest)


def resolve_shape(shape: tuple[int | str, ...], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Give each dimension its number; names that `sizes` lacks count 0."""

    def number(dim: int | str) -> int:
        if isinstance(dim, int):
            return dim
        terms = (term.strip() for term in dim.split("+"))
        return sum(int(term) if term.isdigit() else sizes.get(term, 0) for term in terms)

    return tuple(number(dim) for dim in shape)
