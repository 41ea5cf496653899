"""Reads one file in the form of registry.toml:

[models.NAME]                 [datasets.NAME]
architecture = "gpt2"         kind = "text"
summary, license              source = ["files", "folders/", "*.globs"]
weights = "hf://owner/repo@revision"      summary, license
files = {"name" = "sha256"}
config = {field = value}
recipe.train, recipe.optimizer, recipe.data = {field = value}
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

from cambrian.config import SECTIONS, convert, fields_of
from cambrian.contributions import spellable
from cambrian.errors import BrokenFile, UsageError, nearest
from cambrian.specs import DatasetEntry, Entry

Item: TypeAlias = Entry | DatasetEntry
LIMIT = 1 << 20  # bytes; a registry is a list of names
HUB = re.compile(r"hf://[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[A-Za-z0-9][\w./-]*)?", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}")
KINDS: Mapping[str, type[Item]] = {"models": Entry, "datasets": DatasetEntry}
REQUIRED = {"models": ("architecture",), "datasets": ("kind", "source")}


class Fault(NamedTuple):
    """A table that cannot be used. `section` is "models", "datasets" or "" for neither; `reason`
    is one sentence with file and line."""

    section: str
    name: str
    reason: str


class Wrong(Exception):
    """What is wrong with the value at `path`, the keys that lead to it."""

    def __init__(self, path: Sequence[str], reason: str) -> None:
        super().__init__(reason)
        self.path = tuple(path)
        self.reason = reason


def read_registry_file(file: Path, origin: str) -> tuple[list[Item], list[Fault]]:
    """Return the entries, marked with their origin, and the faulty tables.

    BrokenFile if the file cannot be read or is no TOML.
    """
    text, document = parse(file)
    items: list[Item] = []
    faults: list[Fault] = []
    for section, tables in document.items():
        for name in tables if section in KINDS and isinstance(tables, dict) else [""]:
            try:
                items.append(read_item(document, section, name, origin))
            except Wrong as wrong:
                where = f"{file}, line {line_of(text, wrong.path)}"
                faults.append(Fault(section, name, f"{where}: {wrong.reason}"))
    return items, faults


def parse(file: Path) -> tuple[str, dict[str, Any]]:
    """The file's text and what it says."""
    try:
        if file.stat().st_size > LIMIT:
            raise BrokenFile(f"{file} has more than {LIMIT} bytes; that is no registry file.")
        text = file.read_text("utf-8")
        return text, tomllib.loads(text)
    except OSError as error:
        raise BrokenFile(f"Cannot read {file}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise BrokenFile(f"{file} is not valid TOML: {error}.") from error


def read_item(document: Mapping[str, Any], section: str, name: str, origin: str) -> Item:
    """One table as an Entry or a DatasetEntry; Wrong if it is neither."""
    if section not in KINDS:
        hint = nearest(section, KINDS)
        raise Wrong([section], f"unknown section '{section}'.{hint} Sections are models, datasets.")
    path = [section, name]
    table: Any = document[section][name] if name else None
    if not isinstance(table, dict):
        raise Wrong(path if name else [section], f"write [{section}.NAME] and keys below it.")
    if not spellable(name):
        raise Wrong(path, f"'{name}' is no name: use letters, digits, . _ + -")
    values = read_values(cast(dict[str, Any], table), path)
    for key in REQUIRED[section]:
        if not values.get(key):
            raise Wrong(path, f"[{section}.{name}] lacks {key}.")
    if section == "models":
        check_model(values, path)
    return KINDS[section](name=name, origin=origin, **values)


def read_values(table: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """The table's values by key, with names and types checked."""
    types = keys_of(path[0])
    values: dict[str, Any] = {}
    for key, given in table.items():
        if key not in types:
            raise Wrong([*path, key], f"unknown key '{key}'.{nearest(key, types)}")
        value: Any = [given] if key == "source" and isinstance(given, str) else given
        try:
            values[key] = convert(value, types[key], key)
        except UsageError as error:
            raise Wrong([*path, key], str(error)) from error
    return values


@cache
def keys_of(section: str) -> dict[str, Any]:
    """The keys that a table may have, and their types."""
    return {k: v for k, v in fields_of(KINDS[section]).items() if k not in ("name", "origin")}


def check_model(values: Mapping[str, Any], path: Sequence[str]) -> None:
    """What types cannot say of a model's table."""
    weights = values.get("weights", "")
    if weights and not HUB.fullmatch(weights):
        raise Wrong([*path, "weights"], f"weights: {weights!r} is not hf://owner/repo@revision.")
    for name, digest in values.get("files", {}).items():
        if Path(name).name != name or name.startswith("."):
            raise Wrong([*path, "files", name], f"files: {name!r} is not a plain file name.")
        if not SHA256.fullmatch(digest):
            raise Wrong([*path, "files", name], f"files: {name}: a sha256 has 64 hex digits.")
    for section in values.get("recipe", {}):
        if section not in SECTIONS[1:]:
            hint = nearest(section, SECTIONS[1:])
            raise Wrong([*path, "recipe", section], f"recipe: unknown section '{section}'.{hint}")


def line_of(text: str, path: Sequence[str]) -> int:
    """The line where a key is given: the first without which the text does not hold it yet.

    tomllib tells no lines, so the text is read again in ever longer pieces; only errors pay.
    """
    lines = text.splitlines()
    good = 0
    for count in range(1, len(lines) + 1):
        try:
            found: Any = tomllib.loads("\n".join(lines[:count]))
        except tomllib.TOMLDecodeError:
            continue
        if holds(found, path):
            return good + 1
        good = count
    return good or 1


def holds(document: Any, path: Sequence[str]) -> bool:
    """Whether nested tables have the key at the end of `path`."""
    for key in path:
        if not isinstance(document, dict) or key not in document:
            return False
        document = cast(dict[str, Any], document)[key]
    return True
