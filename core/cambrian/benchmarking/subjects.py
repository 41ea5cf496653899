"""Who takes part in a benchmark: a checkpoint on each engine and in each form, exported folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from cambrian.artifact import MANIFEST, Artifact
from cambrian.checkpoint import CONFIG, read_config
from cambrian.config import update
from cambrian.errors import NotFound
from cambrian.exporting.parity import TOLERANCES
from cambrian.files import read_json
from cambrian.hub import Report
from cambrian.loading import checkpoint_in, folder_for
from cambrian.registry import Registry
from cambrian.workload import Sizes

CHECKPOINT = "safetensors"  # the format by which engines say that they open checkpoints
OWN = "torch"  # the engine in core, which computes a checkpoint in several forms
FORMS = ("float32", "compiled", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One row of the table: a model, and how it is run.

    target: what is opened: a folder or a name. runtime: on which engine; None for the usual one.
    form: of core's own engine, one of FORMS; "" for what `loading.load` opens.
    exporter, precision: what makes the folder that is opened, of `target`; "" if it is there.
    """

    name: str
    target: str
    runtime: str | None = None
    form: str = ""
    exporter: str = ""
    precision: str = ""


def plan(
    targets: Sequence[str], registry: Registry, only: Sequence[str], report: Report
) -> list[Subject]:
    """The subjects of all targets, which are fetched if need be, as far as a pattern of `only`
    fits their names; without any, all but those whose exporter only repackages.

    UsageError for a target without weights, NotFound where no pattern fits.
    """
    found: list[Subject] = []
    for target in targets:
        folder = folder_for(registry.resolve(target), registry, target, report)
        if (folder / MANIFEST).is_file():
            found.append(Subject(name=target, target=target))
            continue
        some = [*of_checkpoint(target, registry)]
        if len(targets) > 1:
            some = [replace(each, name=f"{target} {each.name}") for each in some]
        found += some
    if not only:
        idle = {name for name, spec in registry.exporters.items() if spec.repackages}
        return [each for each in found if each.exporter not in idle]
    chosen = [each for each in found if any(fnmatchcase(each.name, p) for p in only)]
    if not chosen:
        names = ", ".join(each.name for each in found)
        raise NotFound(f"Nothing is called {' or '.join(only)}. There are: {names}.")
    return chosen


def of_checkpoint(target: str, registry: Registry) -> Iterator[Subject]:
    """Each engine that opens checkpoints, and each export that an engine opens."""
    for engine in openers(registry, CHECKPOINT):
        forms = FORMS if engine == OWN else ("",)
        for form in forms:
            name = f"{engine} {form or FORMS[0]}"
            yield Subject(name=name, target=target, runtime=engine, form=form)
    for exporter in registry.exporters.values():
        engines = openers(registry, exporter.format)
        for engine in engines:
            for precision in TOLERANCES:
                name = f"{exporter.name} {precision}" + f" on {engine}" * (len(engines) > 1)
                yield Subject(
                    name=name,
                    target=target,
                    runtime=engine,
                    exporter=exporter.name,
                    precision=precision,
                )


def openers(registry: Registry, kind: str) -> list[str]:
    """The engines that open folders of a format."""
    return [spec.name for spec in registry.runtimes.values() if kind in spec.formats]


def sizes_for(target: str, registry: Registry, changes: dict[str, Any], report: Report) -> Sizes:
    """How much work a model is given: what suits it, but for the changes.

    UsageError for sizes that its task does not know, or that are none.
    """
    resolved = registry.resolve(target)
    folder = folder_for(resolved, registry, target, report)
    if (folder / MANIFEST).is_file():
        spec = registry.pick("architecture", Artifact.open(folder).manifest.architecture)
        config = read_config(read_json(folder / CONFIG), spec, folder / CONFIG)
    else:
        checkpoint = checkpoint_in(resolved, registry, folder)
        spec, config = checkpoint.spec, checkpoint.config
    return update(spec.pipeline.load().default_sizes(config), changes, "sizes")
