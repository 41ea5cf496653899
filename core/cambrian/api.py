"""The Python API: everything the command line does, and what it calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cambrian.artifact import Artifact
from cambrian.checkpoint import CONFIG, GENERATION, read_config
from cambrian.errors import UsageError
from cambrian.evaluation import evaluate, measuring
from cambrian.files import read_json
from cambrian.hub import Report
from cambrian.hub.snapshot import silent
from cambrian.loading import choose_runtime, load, open_checkpoint
from cambrian.pulling import lock, pull
from cambrian.reference import verify_golden
from cambrian.registry import load_registry
from cambrian.runs import Trained, resume, train

__all__ = [
    "Trained",
    "evaluate",
    "export",
    "load",
    "lock",
    "open_checkpoint",
    "pull",
    "resume",
    "run",
    "train",
    "verify",
    "verify_golden",
]


def run(
    target: str | Path, inputs: Sequence[Any], *, device: str = "auto", **options: Any
) -> list[Any]:
    """Run a model on inputs: one result each. `options` are the pipeline's own."""
    pipeline = load(target, device=device)
    try:
        return pipeline(inputs, **options)
    finally:
        pipeline.session.close()


def export(
    target: str | Path,
    out: str | Path,
    *,
    format: str = "onnx",
    precision: str = "float32",
    device: str = "cpu",
    force: bool = False,
    data: Sequence[str] = (),
    limits: Mapping[str, float] = MappingProxyType({}),
    report: Callable[[str], None] = lambda what: None,
    fetching: Report = silent,
) -> Artifact:
    """Export a checkpoint or a named model, and prove the export equal to it on `device`.

    What a coarse precision (int8, int4) costs is measured on what `data` names, or else on what
    the model's own training held out; `limits` replace by how much each figure may change (0: not
    at all for the worse). The weights of int4 are fitted to one part of that data, or to what the
    model was trained on, and measured on the other.
    """
    from cambrian.exporting import quality
    from cambrian.exporting.flow import export_model

    registry = load_registry()
    checkpoint = open_checkpoint(target, registry, fetching)
    exporter, processor = registry.pick("exporter", format), checkpoint.processor()
    measure, drive, tolerated = None, None, checkpoint.spec.pipeline.load().tolerated
    writer = exporter.exporter.load()
    if precision in writer.rounding:
        tolerated = quality.limits(tolerated, limits)
        measure, drive = measuring(checkpoint, processor, data, precision in writer.fitted)
    elif data or limits:
        raise UsageError(
            f"Only a coarse precision is measured on data, and '{format}' has none called "
            f"{precision}; leave out --data and --limit, or choose another --format."
        )
    names = (CONFIG, GENERATION)
    files = {
        n: (checkpoint.path / n).read_bytes() for n in names if (checkpoint.path / n).is_file()
    }
    return export_model(
        checkpoint.model(),
        checkpoint.spec,
        processor,
        Path(out),
        config=checkpoint.config,
        exporter=exporter,
        runtime=choose_runtime(registry, exporter.format),
        config_files=files,
        weights_sha256=checkpoint.weights_sha256(),
        precision=precision,
        force=force,
        device=device,
        progress=report,
        measure=measure,
        tolerated=tolerated,
        drive=drive,
    )


def verify(
    folder: str | Path, *, device: str = "auto", report: Callable[[str], None] = lambda what: None
) -> dict[str, Any]:
    """Hold an exported folder to what its model computed, on this machine and without torch."""
    from cambrian.exporting.golden import verify_artifact

    registry, folder = load_registry(), Path(folder)
    manifest = Artifact.open(folder).manifest
    spec = registry.pick("architecture", manifest.architecture)
    config = read_config(read_json(folder / CONFIG), spec, folder / CONFIG)
    processor = spec.processor.load().load(folder)
    runtime = choose_runtime(registry, manifest.format)
    kind = spec.pipeline.load()
    return verify_artifact(
        folder,
        runtime,
        device,
        build=lambda session: kind(session, processor, config),
        progress=report,
    )
