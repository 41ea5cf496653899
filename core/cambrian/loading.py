"""From a name to something that runs: checkpoints and pipelines."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cambrian.artifact import MANIFEST, Artifact, Manifest
from cambrian.checkpoint import CONFIG, GENERATION, Checkpoint, read_config
from cambrian.config import update
from cambrian.errors import CambrianError, UsageError, nearest
from cambrian.files import read_json, sha256
from cambrian.hub import Report
from cambrian.hub.snapshot import silent
from cambrian.pulling import folder_of
from cambrian.registry import Registry, Resolved, load_registry
from cambrian.specs import ModelSpec, RuntimeSpec

if TYPE_CHECKING:
    from cambrian.data import Processor
    from cambrian.pipeline import Pipeline
    from cambrian.runtime import Session


def open_checkpoint(
    target: str | Path, registry: Registry | None = None, report: Report = silent
) -> Checkpoint:
    """Open a checkpoint by folder, by the name of an entry with weights, or by hf:// address."""
    registry = registry or load_registry()
    resolved = registry.resolve(str(target))
    return checkpoint_in(resolved, registry, folder_for(resolved, registry, str(target), report))


def folder_for(
    resolved: Resolved, registry: Registry, target: str, report: Report = silent
) -> Path:
    """The folder that a target stands for, fetched if need be; UsageError if it has no weights."""
    if resolved.folder is not None:
        return resolved.folder
    if resolved.uri is None:
        folder = f" (for the folder, write ./{target})" if Path(target).is_dir() else ""
        raise UsageError(
            f"'{target}' has no weights yet{folder}; train it first: "
            f"cambrian train {target} -o FOLDER."
        )
    return folder_of(resolved, registry, report)


def checkpoint_in(resolved: Resolved, registry: Registry, folder: Path) -> Checkpoint:
    """The checkpoint in a target's folder."""
    entry = resolved.entry
    if resolved.spec is None or entry is None:
        return Checkpoint.open(folder, registry.models.values())
    # A Hub repository may leave things unsaid that the entry knows.
    description = read_json(folder / CONFIG)
    config = read_config(description, resolved.spec, folder / CONFIG)
    config = update(config, entry.config, f"entry '{entry.name}'")
    return Checkpoint(folder, resolved.spec, config, description)


def load(
    target: str | Path,
    *,
    device: str = "auto",
    runtime: str | None = None,
    report: Report = silent,
) -> Pipeline:
    """Return a pipeline, ready to call: of an exported folder, a checkpoint, or a named model.

    An exported folder runs on the runtime that its format names and needs no torch.
    """
    registry = load_registry()
    resolved = registry.resolve(str(target))
    folder = folder_for(resolved, registry, str(target), report)
    if (folder / MANIFEST).is_file():
        manifest = Artifact.open(folder).manifest
        spec, kind = registry.pick("architecture", manifest.architecture), manifest.format
        config = read_config(read_json(folder / CONFIG), spec, folder / CONFIG)
    else:
        checkpoint = checkpoint_in(resolved, registry, folder)
        spec, config, kind = checkpoint.spec, checkpoint.config, "safetensors"
    engine = choose_runtime(registry, kind, runtime).runtime.load()()
    session = engine.open(folder, device)
    try:
        processor = spec.processor.load().load(folder)
        return make_pipeline(spec, config, folder, processor, session)
    except BaseException:
        session.close()  # it has no other owner yet
        raise


def best_export(target: str | Path) -> Path | None:
    """Where a checkpoint's own float32 export lies beside it, under the name that `export` gives
    it: the one that the installed engines like best. None if there is none of these very weights
    and settings."""
    registry = load_registry()
    resolved = registry.resolve(str(target))
    if resolved.folder is None or (resolved.folder / MANIFEST).is_file():
        return None
    formats = dict.fromkeys(kind for spec in registry.runtimes.values() for kind in spec.formats)
    beside = [export_beside(resolved.folder, kind) for kind in formats]
    for folder in beside:
        with contextlib.suppress(CambrianError, OSError):  # what is broken is no better
            if (folder / MANIFEST).is_file() and exported_from(folder, resolved, registry):
                return folder
    return None


def export_beside(folder: Path, kind: str) -> Path:
    """Where the export of a checkpoint goes unless it is told otherwise."""
    if folder.name in ("", ".."):  # beside "." is not in it
        folder = folder.resolve()
    return folder.parent / f"{folder.resolve().name}-{kind}"


def exported_from(folder: Path, resolved: Resolved, registry: Registry) -> bool:
    """Whether an exported folder computes in float32 what a checkpoint's folder computes now."""
    assert resolved.folder is not None
    manifest = Artifact.open(folder).manifest
    same = all(
        manifest.files.get(name) == (sha256(file) if file.is_file() else None)
        for name in (CONFIG, GENERATION)
        for file in [resolved.folder / name]
    )
    if not same or manifest.precision != "float32":
        return False
    checkpoint = checkpoint_in(resolved, registry, resolved.folder)
    return manifest.receipt.get("weights_sha256") == checkpoint.weights_sha256() and (
        has_processor(manifest, checkpoint)
    )


def has_processor(manifest: Manifest, checkpoint: Checkpoint) -> bool:
    """Whether an exported folder has the files that the checkpoint's processor writes now."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.processor().save(Path(folder))
        files = {file.name: sha256(file) for file in Path(folder).iterdir()}
    return files.items() <= manifest.files.items()


def make_pipeline(
    spec: ModelSpec, config: Any, folder: Path, processor: Processor, session: Session
) -> Pipeline:
    """Build the pipeline with the options that the folder's generation_config.json sets."""
    kind = spec.pipeline.load()
    options = kind.default_options(config)
    file = folder / GENERATION
    saved = read_json(file) if file.is_file() else {}
    known = {f.name for f in dataclasses.fields(options)}
    kept = {k: v for k, v in saved.items() if k in known and v is not None}
    return kind(session, processor, config, update(options, kept, str(file)))


def choose_runtime(registry: Registry, kind: str, name: str | None = None) -> RuntimeSpec:
    """The runtime that opens a format: the named one, or the first that does."""
    able = {spec.name: spec for spec in registry.runtimes.values() if kind in spec.formats}
    if name is not None and name not in able:
        raise UsageError(
            f"Runtime '{name}' does not open {kind} folders.{nearest(name, able)} "
            f"These do: {', '.join(able) or 'none'}."
        )
    if not able:
        raise CambrianError(f"No installed runtime opens {kind} folders; see `cambrian plugins`.")
    return able[name] if name is not None else next(iter(able.values()))


def weights_of(target: str | Path) -> tuple[str, str]:
    """The architecture of a checkpoint or an exported folder, and the sha256 of its weights."""
    registry = load_registry()
    resolved = registry.resolve(str(target))
    folder = folder_for(resolved, registry, str(target))
    if (folder / MANIFEST).is_file():
        manifest = Artifact.open(folder).manifest
        return manifest.architecture, str(manifest.receipt["weights_sha256"])
    checkpoint = checkpoint_in(resolved, registry, folder)
    return checkpoint.spec.name, checkpoint.weights_sha256()
