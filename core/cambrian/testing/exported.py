"""The small models of `ModelSpec.example`, exported once a process, for checks to read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from cambrian.registry import load_registry
from cambrian.specs import ExporterSpec
from cambrian.testing.examples import built, prepared, trained_example

if TYPE_CHECKING:
    from cambrian.artifact import Artifact
    from cambrian.model import Model

CHECKPOINT = "safetensors"  # the format by which engines say that they open checkpoints


@cache
def example_model(architecture: str) -> Model:
    """The trained small model, shared: nobody may change it."""
    checkpoint = trained_example(architecture).checkpoint
    assert checkpoint is not None
    return checkpoint.model()


@cache
def new_model(architecture: str) -> Model:
    """The small model before any training, shared: what it is made of can be told by it."""
    spec = load_registry().models[architecture]
    return built(spec, prepared(spec)[0].config).eval()


@cache
def exported_example(exporter: str, architecture: str) -> Artifact:
    """The small model, exported in float32 on the CPU by an exporter that does not refuse it."""
    from cambrian import api

    folder = trained_example(architecture).folder
    out = folder.with_name(f"{architecture}.{exporter}")
    return api.export(folder, out, format=exporter, device="cpu", force=True)


@cache
def example_folder(architecture: str, kind: str) -> Path | None:
    """The small model in a format, as `Runtime.open` takes it, made on the CPU by the first
    exporter of that format; None where there is none, or where it refuses the model."""
    if kind == CHECKPOINT:
        return trained_example(architecture).folder
    spec = exporter_of(kind)
    if spec is None or refusal(spec, architecture):
        return None
    return exported_example(spec.name, architecture).path


def exporter_of(kind: str) -> ExporterSpec | None:
    """The first exporter that writes a format."""
    found = (spec for spec in load_registry().exporters.values() if spec.format == kind)
    return next(found, None)


def refusal(spec: ExporterSpec, architecture: str, precision: str = "float32") -> str | None:
    """Why an exporter refuses an architecture's small model; None if it does not."""
    return spec.exporter.load()().refuses(new_model(architecture), precision)


def accepted(spec: ExporterSpec) -> Iterator[str]:
    """The registered architectures whose small models an exporter does not refuse."""
    return (name for name in load_registry().models if refusal(spec, name) is None)


def first_accepted(spec: ExporterSpec) -> str:
    """The first of these; AssertionError where there is none."""
    for name in accepted(spec):
        return name
    raise AssertionError("it refuses every registered architecture")
