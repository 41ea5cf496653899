"""The public surface is frozen: what plugins may rest on changes only where somebody says so.

`python tests/test_public_surface.py` writes public_surface.txt anew; whoever does that has a line
for docs/changelog.md to write.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cambrian
from cambrian import hookspecs

FILE = Path(__file__).with_name("public_surface.txt")
ROOT = Path(__file__).parents[1]
# Beside cambrian itself, whose names are cambrian.__all__.
MODULES = """checkpoint data data.config data.image_classes data.images data.next_tokens data.rows
data.text data.tokenizer errors exporting exporting.tracing files generation.config
generation.sampling hookspecs image_pipeline layers model pipeline runtime runtime.binding scores
testing text_pipeline training training.loop workload""".split()  # noqa: SIM905


def surface() -> Iterator[str]:
    """Every public name with its signature, fields and methods; a line each."""
    for name in sorted(cambrian.__all__):
        yield from described(f"cambrian.{name}", getattr(cambrian, name))
    for module in MODULES:
        found = importlib.import_module(f"cambrian.{module}")
        for name, thing in sorted(vars(found).items()):
            own = getattr(thing, "__module__", None) == found.__name__
            if not name.startswith("_") and own and name not in cambrian.__all__:
                yield from described(f"cambrian.{module}.{name}", thing)


def described(name: str, thing: Any) -> Iterator[str]:
    """One name, and what is in it."""
    if not inspect.isclass(thing):
        yield f"{name}{signature(thing)}"
        return
    bases = ", ".join(base.__name__ for base in thing.__bases__ if base is not object)
    yield f"class {name}({bases}){signature(thing)}"
    for member, value in sorted(vars(thing).items()):
        if member.startswith("_"):
            continue
        method = getattr(value, "__func__", value)  # of a class method
        if inspect.isfunction(method):
            yield f"  {name}.{member}{signature(method)}"
        elif isinstance(value, property):
            yield f"  {name}.{member}"


def signature(thing: Any) -> str:
    """As it is called, without addresses of objects in memory."""
    try:
        text = str(inspect.signature(thing))
    except (TypeError, ValueError):
        return ""
    return re.sub(r"<function (\S+) at 0x\w+>", r"\1", re.sub(r" at 0x\w+", "", text))


def test_the_surface_is_as_it_was() -> None:
    known, found = FILE.read_text("utf-8").splitlines(), list(surface())
    gone = [line for line in known if line not in {*found}]
    new = [line for line in found if line not in {*known}]
    assert not gone and not new, (
        f"gone: {gone}, new: {new}. Plugins may rest on this: keep what is gone under its old name "
        "(cambrian.deprecation), then run python tests/test_public_surface.py"
    )


def test_examples_rest_on_public_names() -> None:
    files = [*ROOT.glob("docs/examples/*/cambrian_*/*.py"),
             *ROOT.glob("core/cambrian/scaffold/plugin/cambrian_*/*.py")]  # fmt: skip
    public = {"cambrian", *(f"cambrian.{module}" for module in MODULES)}
    assert len(files) > 10
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cambrian":
                assert node.module in public, f"{file}: {node.module}"


def test_every_hook_says_since_when() -> None:
    for name, hook in vars(hookspecs).items():
        if name.startswith("register_"):
            assert re.search(r"Since \d+\.\d+\.", inspect.getdoc(hook) or ""), name


if __name__ == "__main__":
    FILE.write_text("\n".join(surface()) + "\n", "utf-8")
    sys.exit(0)
