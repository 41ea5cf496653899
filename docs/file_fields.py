"""The page of the fields of files, from the classes that read and write them."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from cambrian.artifact import GraphFile, Manifest, Port, Signature
from cambrian.hub.lock import Lock, Pin, PinnedFile
from cambrian.registry_file import REQUIRED
from cambrian.specs import DatasetEntry, Entry, Golden


class Table(NamedTuple):
    """A class and what its table is called in the file; fields that the file does not have, and
    fields that it must have although the class has a default."""

    kind: type[Any]
    title: str
    outside: tuple[str, ...] = ()
    required: tuple[str, ...] = ()


HEAD = "# Fields of files\n\n[Folders and files](folders.md) shows them in use.\n"
ENTRY = ("name", "origin")  # the table's own name, and the file
FILES = {
    "registry.toml and cambrian.toml": (
        Table(Entry, "[models.NAME]", ENTRY, REQUIRED["models"]),
        Table(Golden, "[models.NAME.golden]"),
        Table(DatasetEntry, "[datasets.NAME]", ENTRY, REQUIRED["datasets"]),
    ),
    "cambrian.lock": (
        Table(Lock, "cambrian.lock"),
        Table(Pin, "Pin"),
        Table(PinnedFile, "PinnedFile"),
    ),
    "manifest.json": (
        Table(Manifest, "manifest.json"),
        Table(GraphFile, "GraphFile"),
        Table(Signature, "Signature"),
        Table(Port, "Port"),
    ),
}
TITLES = {table.kind: table.title for tables in FILES.values() for table in tables}
PLAIN = {str: "string", int: "whole number", float: "number", bool: "boolean", Any: "anything"}


def file_fields() -> str:
    """The page."""
    parts = [HEAD]
    for file, tables in FILES.items():
        parts.append(f"## Of {file}\n")
        for table in tables:
            hints = get_type_hints(table.kind, include_extras=True)
            parts += [f"### {table.title}\n", inspect.cleandoc(table.kind.__doc__ or "") + "\n"]
            parts += ["| field | type | default |", "| --- | --- | --- |"]
            parts += [
                f"| `{field.name}` | {shown_type(hints[field.name])} | {default(field, table)} |"
                for field in fields(table.kind)
                if field.name not in table.outside
            ]
            parts.append("")
    return "\n".join(parts)


def default(field: Field[Any], table: Table) -> str:
    """What a field is if the file does not have it."""
    if field.name in table.required:
        return "required"
    if field.default_factory is not MISSING:
        return "empty"
    if field.default is MISSING:
        return "required"
    return "not set" if field.default in (None, "") else f"`{field.default}`"


def shown_type(hint: Any, many: bool = False) -> str:
    """A type as who writes TOML or JSON thinks of it; `many` of it."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        pattern = getattr(inner[1], "pattern", None)
        return shown_type(inner[0], many) + (f" like `{pattern}`" if pattern else "")
    if origin in (Union, types.UnionType):
        shown = {float: float} if {*inner} == {int, float} else dict.fromkeys(inner)
        return " or ".join(shown_type(one, many) for one in shown if one is not type(None))
    if is_dataclass(hint):
        return f"`{TITLES[hint]}`"
    if origin is tuple:
        return f"list{'s' * many} of {shown_type(inner[0], many=True)}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"table{'s' * many} of {shown_type(inner[1], many=True)}"
    return PLAIN[hint] + "s" * (many and hint is not Any)
