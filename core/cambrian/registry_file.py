"""Reads one file in the form of registry.toml:

[models.NAME]                 [datasets.NAME]
architecture = "gpt2"         kind = "text"
summary, license              source = ["files", "folders/", "*.globs"]
weights = "hf://owner/repo@revision"      summary, license
files = {"name" = "sha256"}
config = {field = value}
recipe.train, recipe.optimizer, recipe.data = {field = value}
golden = {what a reference computed: the fields of specs.Golden}
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

from cambrian.config import SECTIONS, convert, fields_of
from cambrian.contributions import spellable
from cambrian.errors import BrokenFile, UsageError, nearest
from cambrian.specs import DatasetEntry, Entry, Golden
from cambrian.toml import parse_toml

Item: TypeAlias = Entry | DatasetEntry
LIMIT = 256 << 10  # bytes; a registry is a list of names
HUB = re.compile(r"hf://[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[A-Za-z0-9][\w./-]*)?", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}")
# What tells where a statement of TOML ends: strings and comments, brackets, ends of lines.
TOKEN = re.compile(
    r""""{3}(?:\\.|[^\\])*?"{3,5}|'{3}.*?'{3,5}|"(?:\\.|[^"\\])*"|'[^']*'|\#[^\n]*|[][{}\n]""",
    re.DOTALL,
)
KINDS: Mapping[str, type[Item]] = {"models": Entry, "datasets": DatasetEntry}
REQUIRED = {"models": ("architecture",), "datasets": ("kind", "source")}
RECIPE = SECTIONS[1:-1]  # an entry does not choose the trainer
GOLDEN = ("inputs", "ids", "values", "source")


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
        return text, parse_toml(text)
    except OSError as error:
        raise BrokenFile(f"Cannot read {file}: {error.strerror}.") from error
    except ValueError as error:
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
    values = read_values(cast(dict[str, Any], table), path, keys_of(section))
    for key in REQUIRED[section]:
        if not values.get(key):
            raise Wrong(path, f"[{section}.{name}] lacks {key}.")
    if section == "models":
        check_model(values, path)
    return KINDS[section](name=name, origin=origin, **values)


def read_values(
    table: Mapping[str, Any], path: Sequence[str], types: Mapping[str, Any]
) -> dict[str, Any]:
    """The table's values by key, with names and types checked."""
    values: dict[str, Any] = {}
    for key, given in table.items():
        if key not in types:
            raise Wrong([*path, key], f"unknown key '{key}'.{nearest(key, types)}")
        value: Any = given
        if key == "golden":
            value = read_golden(given, [*path, key])
        elif key == "source" and path[0] == "datasets" and isinstance(given, str):
            value = [given]
        try:
            values[key] = convert(value, types[key], key)
        except UsageError as error:
            raise Wrong([*path, key], str(error)) from error
    return values


def read_golden(table: Any, path: Sequence[str]) -> Golden:
    """The table of what a reference computed."""
    if not isinstance(table, dict):
        raise Wrong(path, "golden is one table; write [models.NAME.golden] and keys below it.")
    values = read_values(cast(dict[str, Any], table), path, fields_of(Golden))
    if missing := [key for key in GOLDEN if key not in values]:
        raise Wrong(path, f"golden lacks {missing[0]}.")
    try:
        return Golden(**values)
    except ValueError as error:
        raise Wrong(path, f"golden: {error}.") from error


@cache
def keys_of(section: str) -> dict[str, Any]:
    """The keys that a table may have, and their types."""
    return {k: v for k, v in fields_of(KINDS[section]).items() if k not in ("name", "origin")}


def check_model(values: Mapping[str, Any], path: Sequence[str]) -> None:
    """What types cannot say of a model's table."""
    weights = values.get("weights", "")
    if weights and not HUB.fullmatch(weights):
        raise Wrong([*path, "weights"], f"weights: {weights!r} is not hf://owner/repo@revision.")
    if "golden" in values and not weights:
        raise Wrong([*path, "golden"], "golden is of weights, which this table does not name.")
    for name, digest in values.get("files", {}).items():
        if Path(name).name != name or name.startswith("."):
            raise Wrong([*path, "files", name], f"files: {name!r} is not a plain file name.")
        if not SHA256.fullmatch(digest):
            raise Wrong([*path, "files", name], f"files: {name}: a sha256 has 64 hex digits.")
    for section in values.get("recipe", {}):
        if section not in RECIPE:
            hint = nearest(section, RECIPE)
            raise Wrong([*path, "recipe", section], f"recipe: unknown section '{section}'.{hint}")


def line_of(text: str, path: Sequence[str]) -> int:
    """The line where a key of valid TOML is given first; tomllib tells none."""
    lines = lines_of(text)
    return next(
        (lines[key] for n in range(len(path), 0, -1) if (key := tuple(path[:n])) in lines), 1
    )


@lru_cache(maxsize=1)
def lines_of(text: str) -> Mapping[tuple[str, ...], int]:
    """The line where each key is given first, by the names that lead to it."""
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for line, statement in statements(text):
        is_header = statement.lstrip().startswith("[")
        found = [path if is_header else table + path for path in paths(tomllib.loads(statement))]
        for path in found:
            lines.setdefault(path, line)
        table = found[-1] if is_header else table
    return lines


def statements(text: str) -> Iterator[tuple[int, str]]:
    """What valid TOML consists of, headers of tables and keys with values, each with its line."""
    line, begin, depth = 1, 0, 0
    for token in TOKEN.finditer(f"{text}\n"):
        if token[0] == "\n" and not depth:
            yield line, text[begin : token.end()]
            line += text.count("\n", begin, token.end())
            begin = token.end()
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)


def paths(document: Any, depth: int = 4) -> Iterator[tuple[str, ...]]:
    """The names that lead to each key of nested tables, as deep as a `Wrong` points."""
    if isinstance(document, dict) and depth:
        for key, value in cast(dict[str, Any], document).items():
            yield (key,)
            yield from ((key, *path) for path in paths(value, depth - 1))
