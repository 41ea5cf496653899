"""The page of the Python interface: every public name, as its source has it, without the bodies."""

from __future__ import annotations

import ast
import inspect
import sys
from importlib import import_module
from pathlib import Path

import cambrian

SECTIONS = {
    "Use models": (
        "What the command line calls.",
        "train resume evaluate export verify verify_golden run load open_checkpoint pull lock "
        "bench load_registry",
    ),
    "What they give": (
        "Folders are opened without reading weights.",
        "Checkpoint Artifact Signature Port Scores Confusion",
    ),
    "Errors": (
        "Every one is a sentence for the user: what, why, what to do.",
        "CambrianError UsageError",
    ),
    "Settings of a run": ("", "Recipe TrainConfig OptimizerConfig"),
    "Describe a plugin": (
        "What the [hooks](hooks.md) return: frozen, and without importing what does the work.",
        "hookimpl Ref ModelSpec TrainerSpec ExporterSpec RuntimeSpec Entry DatasetEntry Golden",
    ),
    "Write a model": (
        "What a `ModelSpec` refers to.",
        "Model Update Graph Case Processor Prepared Batches Pipeline Workload Sizes",
    ),
    "Write a trainer": ("", "Trainer LoopTrainer Job Outcome"),
    "Write an exporter or an engine": ("", "Exporter GraphFile Runtime Session"),
}
SPECIAL = ("__init__", "__call__", "__len__")


def public_names() -> str:
    """The page. SystemExit unless every public name stands in one section."""
    placed = [name for _, names in SECTIONS.values() for name in names.split()]
    if wrong := {*placed} ^ {*cambrian.__all__}:
        raise SystemExit(f"docs/public_names.py and cambrian.__all__ differ in {sorted(wrong)}")
    parts = [
        "# Python\n",
        "Every name of `import cambrian`, as its source has it, without the bodies.\n",
    ]
    for title, (text, names) in SECTIONS.items():
        parts += [f"## {title}\n", *([f"{text}\n"] if text else [])]
        for name in names.split():
            parts.append(f"### {name}\n\n```python\n{stub(name)}\n```\n")
    return "\n".join(parts)


def stub(name: str) -> str:
    """The source of a public name: signatures, fields and docstrings."""
    value = getattr(cambrian, name)
    plain = not (inspect.isclass(value) or inspect.isfunction(value))
    home = cambrian.__dict__["_HOME_OF"][name] if plain else ""
    module = import_module(f"cambrian.{home}") if plain else sys.modules[value.__module__]
    text = Path(str(module.__file__)).read_text("utf-8")
    node = next(node for node in ast.parse(text).body if name in names_of(node))
    return "\n".join(outline(node, text.splitlines()))


def names_of(node: ast.stmt) -> list[str]:
    """What a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def outline(node: ast.stmt, lines: list[str]) -> list[str]:
    """A definition's lines, as far as they are for others to see."""
    if not isinstance(node, ast.FunctionDef | ast.ClassDef):
        return lines[node.lineno - 1 : node.end_lineno]
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    described = ast.get_docstring(node) is not None
    shown = lines[first - 1 : node.body[0].end_lineno if described else node.body[0].lineno - 1]
    if isinstance(node, ast.ClassDef):
        for member in node.body[described:]:
            names = names_of(member)
            if names and (names[0] in SPECIAL or not names[0].startswith("_")):
                gap = isinstance(member, ast.FunctionDef) or shown[-1].endswith('"""')
                shown += [*([""] if gap else []), *outline(member, lines)]
    return shown
