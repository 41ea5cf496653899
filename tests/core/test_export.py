"""Exporting as a whole: what is written, what is refused, and that nothing is left by halves."""

from __future__ import annotations

import contextlib
import copy
import json
import resource
import shutil
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

import toy_model
from cambrian.artifact import MANIFEST, REJECTED, Artifact, GraphFile
from cambrian.errors import CambrianError, Rejected, UsageError
from cambrian.exporting import Exporter
from cambrian.model import Model
from cambrian.specs import ExporterSpec, Ref
from cambrian_onnx.exporter import OnnxExporter
from cambrian_onnx.runtime import OnnxRuntime


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_model.export(tmp_path_factory.mktemp("exported") / "toy").path


class Copying(Exporter):
    """Takes the graphs of an earlier export, to be spoilt by subclasses."""

    source: ClassVar[Path]

    def refuses(self, model: Model, precision: str) -> str | None:
        return None

    def export(self, model: Model, folder: Path, *, precision: str) -> dict[str, GraphFile]:
        graphs = Artifact.open(self.source).manifest.graphs
        for graph in graphs.values():
            shutil.copy(self.source / graph.file, folder)
        return self.spoil(folder, dict(graphs))

    def spoil(self, folder: Path, graphs: dict[str, GraphFile]) -> dict[str, GraphFile]:
        return graphs

    def stamp(
        self, folder: Path, graphs: Mapping[str, GraphFile], facts: Mapping[str, str]
    ) -> None:
        pass


class OneWeightOff(Copying):
    def spoil(self, folder: Path, graphs: dict[str, GraphFile]) -> dict[str, GraphFile]:
        file = folder / "decoder_model.onnx"
        model = onnx.load(file)
        tensor = next(t for t in model.graph.initializer if t.name == "qkv.bias")
        array = numpy_helper.to_array(tensor).copy()
        array[-1] += 0.01
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        onnx.save(model, file)
        return graphs


class KeysForValues(Copying):
    def spoil(self, folder: Path, graphs: dict[str, GraphFile]) -> dict[str, GraphFile]:
        decoder = graphs["decoder"]
        key, value = decoder.signature.state.items()
        swapped = {key[0]: value[1], value[0]: key[1]}
        signature = replace(decoder.signature, state=swapped)
        return graphs | {"decoder": replace(decoder, signature=signature)}


class NoCausalMask(OnnxExporter):
    def export(self, model: Model, folder: Path, *, precision: str) -> dict[str, GraphFile]:
        def mask(attention_mask: Tensor, sequence: int, past: int) -> Tensor:
            visible = (attention_mask[:, None, None] > 0) | (torch.arange(past + sequence) < 0)
            return visible.expand(-1, 1, sequence, -1)

        model = copy.deepcopy(model)
        model.decoder.mask = mask
        return super().export(model, folder, precision=precision)


class Interrupted(Copying):
    def spoil(self, folder: Path, graphs: dict[str, GraphFile]) -> dict[str, GraphFile]:
        raise KeyboardInterrupt


class Refusing(Copying):
    def refuses(self, model: Model, precision: str) -> str | None:
        return "it is a toy"


@pytest.fixture
def exporting(good: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Copying, "source", good, raising=False)

    def spec(kind: type[Exporter]) -> ExporterSpec:
        target = Ref(f"{__name__}:{kind.__name__}")
        return ExporterSpec(name=kind.__name__, summary="", format="onnx", exporter=target)

    return spec


def test_a_good_export_describes_itself(good: Path) -> None:
    names = {path.name for path in good.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "decoder_model.onnx",
        "generator_model.onnx",
        "golden.safetensors",
        "manifest.json",
        "toy.json",
    }
    artifact = Artifact.open(good)
    artifact.check()
    assert set(artifact.manifest.files) == names - {"README.md", "manifest.json"}
    receipt = artifact.manifest.receipt
    assert receipt["passed"] is True
    assert [case["name"] for case in receipt["cases"]] == [
        c.name for c in toy_model.build().cases()
    ]
    assert 0 < receipt["max_abs_diff"] < 1e-5
    assert receipt["argmax_agreement"] == 1
    assert receipt["probe"] == "equal"
    assert receipt["provider"] == "CPUExecutionProvider"
    assert receipt["settings"]["optimization"] == "ORT_ENABLE_ALL"
    assert {"python", "cambrian", "torch", "onnx"} <= receipt["versions"].keys()
    card = (good / "README.md").read_text()
    assert "| left padding |" in card
    assert "cambrian run toy" in card


def test_the_receipt_is_in_the_graphs_themselves(good: Path) -> None:
    model = onnx.load(good / "decoder_model.onnx")
    onnx.checker.check_model(model, full_check=True)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["cambrian.architecture"] == "toy"
    assert facts["cambrian.weights_sha256"] == "0" * 64
    assert float(facts["cambrian.max_abs_diff"]) < 1e-5


def test_same_model_same_bytes(good: Path, tmp_path: Path) -> None:
    again = toy_model.export(tmp_path / "toy").path
    for path in good.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("kind", [OneWeightOff, KeysForValues, NoCausalMask])
def test_what_differs_is_rejected_and_set_aside(tmp_path: Path, exporting, kind) -> None:
    out = tmp_path / "toy"
    with pytest.raises(Rejected, match=r"(differs by|another in).*toy\.rejected") as caught:
        toy_model.export(out, exporter=exporting(kind))
    assert caught.value.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["toy.rejected"]
    aside = tmp_path / "toy.rejected"
    assert not (aside / MANIFEST).exists()
    assert json.loads((aside / REJECTED).read_text())["receipt"]["passed"] is False


def test_a_place_that_cannot_be_replaced_is_refused_at_once(
    tmp_path: Path, exporting, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy.rejected").mkdir()
    (tmp_path / "toy.rejected" / "mine.txt").write_text("mine")
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    for out, message in (
        (tmp_path / "toy", r"toy\.rejected is no exported"),
        (Path(), "as a whole"),
    ):
        told: list[str] = []
        with pytest.raises(UsageError, match=message):
            toy_model.export(out, exporter=exporting(NoCausalMask), progress=told.append)
        assert told == []


def test_a_rejected_export_replaces_the_last_rejected_one_only(tmp_path: Path, exporting) -> None:
    out = tmp_path / "toy"
    for _ in range(2):
        with pytest.raises(Rejected):
            toy_model.export(out, exporter=exporting(OneWeightOff))
    assert [path.name for path in tmp_path.iterdir()] == ["toy.rejected"]
    (tmp_path / "toy.rejected" / REJECTED).unlink()
    with pytest.raises(UsageError, match="no exported folder and will not be replaced"):
        toy_model.export(out, exporter=exporting(OneWeightOff))
    assert [path.name for path in tmp_path.iterdir()] == ["toy.rejected"]


def test_a_wider_tolerance_lets_a_small_error_through(tmp_path: Path, exporting) -> None:
    spec = exporting(OneWeightOff)
    artifact = toy_model.export(tmp_path / "toy", exporter=spec, tolerance=0.1)
    assert artifact.manifest.receipt["limit"] == 0.1
    assert artifact.manifest.receipt["max_abs_diff"] > 1e-3


def test_an_existing_export_is_replaced_only_by_force(tmp_path: Path, exporting) -> None:
    out = tmp_path / "toy"
    toy_model.export(out, exporter=exporting(Copying))
    (out / "mine.txt").write_text("kept")
    with pytest.raises(UsageError, match="--force"):
        toy_model.export(out, exporter=exporting(Copying))
    assert (out / "mine.txt").exists()
    with pytest.raises(Rejected):
        toy_model.export(out, exporter=exporting(OneWeightOff), force=True)
    assert (out / "mine.txt").exists(), "a rejected export must not replace a good one"
    toy_model.export(out, exporter=exporting(Copying), force=True)
    assert not (out / "mine.txt").exists()


def test_force_never_replaces_a_folder_that_is_no_export(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="no exported folder"):
        toy_model.export(tmp_path, force=True)
    assert (tmp_path / "thesis.tex").exists()


def test_an_interrupted_export_leaves_nothing(tmp_path: Path, exporting) -> None:
    with pytest.raises(KeyboardInterrupt):
        toy_model.export(tmp_path / "toy", exporter=exporting(Interrupted))
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_verification_leaves_nothing(tmp_path: Path, exporting) -> None:
    def stop(what: str) -> None:
        if "padding" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy_model.export(tmp_path / "toy", exporter=exporting(Copying), progress=stop)
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def file_size_limit(size: int) -> Generator[None]:
    """Let no file of this process grow beyond `size` bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("size", "kind"), [(3000, OnnxExporter), (3000, Copying), (14000, Copying)]
)  # within the exporter's own writing, within its copy, within golden.safetensors
def test_a_full_disk_leaves_nothing(tmp_path: Path, exporting, size: int, kind) -> None:
    spec = toy_model.register_exporters()[0] if kind is OnnxExporter else exporting(kind)
    with file_size_limit(size), pytest.raises(CambrianError, match="File too large") as caught:
        toy_model.export(tmp_path / "toy", exporter=spec)
    assert str(tmp_path / "toy") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_float16_is_held_to_the_float32_model(tmp_path: Path) -> None:
    model = toy_model.build()
    artifact = toy_model.export(tmp_path / "toy", model, precision="float16")
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    signature = artifact.manifest.graphs["decoder"].signature
    assert {port.dtype for port in signature.inputs} == {"int64", "float16"}
    assert {port.dtype for port in signature.outputs} == {"float16"}
    receipt = artifact.manifest.receipt
    assert 1e-4 < receipt["max_abs_diff"] < 2e-2  # it is float16, and it is right
    session = OnnxRuntime().open(artifact.path, "cpu")
    outputs, state = session.run("decoder", toy_model.toy.decoder_inputs(np.array([[1, 2]]), 0))
    assert outputs["logits"].dtype == np.float16
    session.run("decoder", toy_model.toy.decoder_inputs(np.array([[3]]), 2), state)


def test_refusals_say_why(tmp_path: Path, exporting) -> None:
    with pytest.raises(UsageError, match="Cannot export toy with 'Refusing': it is a toy"):
        toy_model.export(tmp_path / "toy", exporter=exporting(Refusing))
    with pytest.raises(UsageError, match="no precision 'int2'"):
        toy_model.export(tmp_path / "toy", precision="int2")
    other = replace(exporting(Copying), format="gguf")
    with pytest.raises(UsageError, match="cannot open gguf"):
        toy_model.export(tmp_path / "toy", exporter=other)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_cases_cannot_be_proved(tmp_path: Path, exporting) -> None:
    model = toy_model.build()
    model.cases = lambda: ()
    with pytest.raises(Rejected, match="no case"):
        toy_model.export(tmp_path / "toy", model, exporter=exporting(Copying))


def test_an_engine_that_cannot_compute_a_case_fails_it(tmp_path: Path, exporting) -> None:
    model = toy_model.build()
    beyond = np.full((1, 1), 99)  # no such token: torch must accept what the engine then refuses
    case = toy_model.Case("odd", (("decoder", toy_model.toy.decoder_inputs(beyond, 0)),))
    model.cases = lambda: (case,)
    model.decoder.wte.weight.data = torch.zeros(100, 16)
    with pytest.raises(CambrianError, match="odd"):
        toy_model.export(tmp_path / "toy", model, exporter=exporting(Copying))
