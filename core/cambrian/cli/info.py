"""cambrian info"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from cambrian.cli import text
from cambrian.cli.completion import complete_any
from cambrian.config import as_changes
from cambrian.registry import Registry, Resolved, load_registry
from cambrian.specs import DatasetEntry, Entry, ExporterSpec, ModelSpec, RuntimeSpec, TrainerSpec

TOOLS = ("trainer", "exporter", "runtime")
PARTS = ("model", "processor", "data", "pipeline", "weights")


def info(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A name from `cambrian list`, a folder, or hf://owner/repo@revision.",
            autocompletion=complete_any,
            show_default=False,
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show all that is known of a model, data set, folder, trainer, exporter or engine.

    \b
    Examples:
      cambrian info gpt2
      cambrian info runs/demo
      cambrian info onnx-ort
      cambrian info gpt2 --json
    """
    facts = facts_of(name, load_registry())
    if as_json:
        text.as_json(facts)
    else:
        show(facts)


def facts_of(name: str, registry: Registry) -> dict[str, Any]:
    """What there is to say, by heading, JSON-ready."""
    entry = registry.entries.get(name)
    if entry is not None and (why := registry.unavailable(entry)):
        return {**entry_facts(entry, registry), "unavailable": why, "config": dict(entry.config)}
    known = {*registry.entries, *registry.models}
    if name in registry.datasets and name not in known:
        return dataset_facts(registry.pick("data set", name), registry)
    for kind in TOOLS:
        if name not in known and registry.origins(kind, name):
            return tool_facts(kind, registry.pick(kind, name), registry)
    resolved = registry.resolve(name)
    if resolved.folder is not None:
        return folder_facts(resolved.folder)
    if resolved.spec is None:
        same = [e.name for e in registry.entries.values() if e.weights == resolved.uri]
        return {"address": resolved.uri, "models": same, **remote_facts(name)}
    return model_facts(resolved, resolved.spec, registry)


def remote_facts(address: str) -> dict[str, Any]:
    """What the Hub tells of a repository: its files, its config, and of its weights the header."""
    from cambrian import pulling
    from cambrian.cli.progress import Downloads

    with Downloads() as downloads:
        found = pulling.look_at(address, report=downloads.report)
    return {
        "commit": found.plan.listing.location.revision,
        "license": found.plan.listing.license or "not stated",
        "gated": "yes" if found.plan.listing.gated else "no",
        "files": {file.name: f"{file.size:,} bytes" for file in found.plan.needed},
        "parameters": f"{found.parameters:,}" if found.parameters else "",
        "dtypes": list(found.dtypes),
        "config": found.config,
    }


def model_facts(resolved: Resolved, spec: ModelSpec, registry: Registry) -> dict[str, Any]:
    """An entry or an architecture with its settings as they would be used."""
    config, recipe = registry.settings(resolved)
    entry = resolved.entry
    head: dict[str, Any] = (
        entry_facts(entry, registry)
        if entry is not None
        else {"architecture": spec.name, "summary": spec.summary}
    )
    provided = [origin.place for origin in registry.origins("architecture", spec.name)]
    code = {part: ref.target for part in PARTS if (ref := getattr(spec, part)) is not None}
    settings = as_changes(config, recipe)
    values = settings.pop("model")
    return {
        **head,
        "task": spec.task,
        "provided by": provided,
        "code": code,
        "config": {f.name: values.get(f.name) for f in dataclasses.fields(config)},
        "differs": dict(entry.config) if entry is not None else {},
        "recipe": settings,
    }


def entry_facts(entry: Entry, registry: Registry) -> dict[str, Any]:
    """What an entry says of itself; the first of `declared in` overrides the others."""
    return {
        "name": entry.name,
        "architecture": entry.architecture,
        "summary": entry.summary,
        "license": entry.license or "not stated",
        "weights": entry.weights or "none; to be trained",
        "files": dict(entry.files),
        "golden": entry.golden.source if entry.golden is not None else "",
        "declared in": places(registry, "model", entry.name),
    }


def dataset_facts(dataset: DatasetEntry, registry: Registry) -> dict[str, Any]:
    """A data set."""
    return {
        "data set": dataset.name,
        "kind": dataset.kind,
        "source": list(dataset.source),
        "summary": dataset.summary,
        "license": dataset.license or "not stated",
        "declared in": places(registry, "data set", dataset.name),
    }


def tool_facts(kind: str, spec: Any, registry: Registry) -> dict[str, Any]:
    """A trainer with its settings, an exporter, or an engine."""
    facts: dict[str, Any] = {kind: spec.name, "summary": spec.summary}
    if isinstance(spec, TrainerSpec):
        facts["settings"] = {} if spec.config is None else dataclasses.asdict(spec.config())
        facts["recipe"] = {name: dict(part) for name, part in spec.recipe.items()}
    elif isinstance(spec, ExporterSpec):
        facts["format"] = spec.format
    elif isinstance(spec, RuntimeSpec):
        facts["formats"] = list(spec.formats)
    return {
        **facts,
        "code": getattr(spec, kind).target,
        "provided by": places(registry, kind, spec.name),
    }


def places(registry: Registry, kind: str, name: str) -> list[str]:
    """Where a name is declared, strongest first."""
    return [f"{origin.label}: {origin.place}" for origin in registry.origins(kind, name)]


def folder_facts(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json, or an artifact's manifest with its receipt."""
    from cambrian.artifact import MANIFEST, Artifact
    from cambrian.files import read_json

    facts: dict[str, Any] = {"folder": str(folder)}
    if (folder / MANIFEST).is_file():
        import msgspec

        facts["manifest"] = msgspec.to_builtins(Artifact.open(folder).manifest)
    if (folder / "config.json").is_file():
        facts["config"] = read_json(folder / "config.json")
    facts["files"] = {
        file.name: f"{file.stat().st_size:,} bytes"
        for file in sorted(folder.iterdir())
        if file.is_file()
    }
    return facts


def show(facts: Mapping[str, Any], indent: str = "", marked: Collection[str] = ()) -> None:
    """Print nested facts, one a line; a * marks what differs from the architecture's defaults."""
    pad = max((len(key) for key in facts), default=0)
    for key, value in facts.items():
        if key == "differs" or value in ({}, [], (), ""):
            continue
        label = text.printable(key).ljust(pad)
        if isinstance(value, Mapping):
            typer.secho(indent + label.rstrip(), bold=not indent)
            differs = facts.get("differs", ()) if key == "config" else ()
            show(cast(Mapping[str, Any], value), indent + "  ", differs)
            continue
        separator = ", overriding " if key == "declared in" else ", "
        items = cast(Sequence[Any], value) if isinstance(value, (list, tuple)) else [value]
        shown = text.printable(separator.join(str(item) for item in items))
        typer.echo(f"{indent}{label}  {shown}{' *' if key in marked else ''}")
