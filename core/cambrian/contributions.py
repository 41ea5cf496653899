"""What hooks may return, and whether a plugin did return it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from cambrian.config import Recipe
from cambrian.diagnosis import Misfit
from cambrian.specs import (
    DatasetEntry,
    Entry,
    ExporterSpec,
    Golden,
    ModelSpec,
    Ref,
    RuntimeSpec,
    TrainerSpec,
)

PROVIDES: Mapping[str, tuple[type, ...]] = {
    "register_models": (ModelSpec,),
    "register_trainers": (TrainerSpec,),
    "register_exporters": (ExporterSpec,),
    "register_runtimes": (RuntimeSpec,),
    "register_entries": (Entry, DatasetEntry, Path),
}
HOOKS = (*PROVIDES, "register_commands")

OUTER: Mapping[str, type] = {
    "str": str,
    "tuple": tuple,
    "type": type,
    "Mapping": Mapping,
    "Ref": Ref,
    "Recipe": Recipe,
    "Golden": Golden,
}


def checked(result: object, kinds: Sequence[type]) -> list[Any]:
    """The items of a hook's result, each of the right class and well-formed; Misfit otherwise."""
    wanted = " or ".join(kind.__name__ for kind in kinds)
    if isinstance(result, (str, bytes, Mapping)) or not isinstance(result, Iterable):
        raise Misfit(f"returns {article(result)}, not a list of {wanted}")
    items = list(cast(Iterable[Any], result))
    seen: set[tuple[type, str]] = set()
    for number, item in enumerate(items, start=1):
        if not isinstance(item, tuple(kinds)):
            raise Misfit(f"item {number} is {article(item)}, not {wanted}")
        if isinstance(item, Path):
            continue
        if fault := malformed(item):
            raise Misfit(f"item {number}, {type(item).__name__}: {fault}")
        if (key := (type(item), item.name)) in seen:
            raise Misfit(f"names '{item.name}' twice")
        seen.add(key)
    return items


def malformed(spec: Any) -> str:
    """What is wrong with a spec's fields, or an empty string."""
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if not fits(value, str(field.type)):
            return f"{field.name} is {article(value)}, which does not fit {field.type}"
    return "" if spellable(spec.name) else f"{spec.name!r} is no name: use letters, digits, . _ + -"


def fits(value: object, annotation: str) -> bool:
    """Whether a value is what a spec's field declares; only the outermost type is looked at."""
    kind, _, optional = annotation.partition(" | ")
    if value is None and optional:
        return True
    outer = OUTER.get(kind.partition("[")[0], object)
    return isinstance(value, outer) and (outer is not type or dataclasses.is_dataclass(value))


def spellable(name: str) -> bool:
    """Whether a name can be typed and cannot be taken for a path or a URI."""
    return bool(name) and all(c.isalnum() or c in "._+-" for c in name) and name[0].isalnum()


def described(item: Any) -> str:
    """What `registers` says of an item: "model gpt2"; an Entry is what users call a model."""
    if isinstance(item, Path):
        return f"entries {item.name}"
    kind = {ModelSpec: "architecture", Entry: "model", DatasetEntry: "data set"}.get(type(item))
    return f"{kind or type(item).__name__.removesuffix('Spec').lower()} {item.name}"


def article(value: object) -> str:
    """ "a dict", "an int", "None", "the class X"."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, ModuleType):
        return "a module"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
