"""Verification of an exported folder later and elsewhere: without torch, on any engine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file

import toy
import toy_model
from cambrian.artifact import MANIFEST, Artifact
from cambrian.errors import BrokenFile, NotFound, Rejected
from cambrian.exporting.golden import GOLDEN, SAMPLES, last_choices, sample, verify_artifact
from cambrian.files import sha256
from cambrian_onnx import register_runtimes
from cambrian_onnx.runtime import OnnxSession

RUNTIME = register_runtimes()[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_model.export(tmp_path_factory.mktemp("exported") / "toy").path


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported, tmp_path / "toy")


def pipeline(session) -> toy.ToyPipeline:
    return toy.ToyPipeline(session, toy.ToyProcessor(), toy.ToyConfig())


def rehash(folder: Path) -> None:
    """Make the manifest agree with the files, as one who tampers would."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"] = {name: sha256(folder / name) for name in manifest["files"]}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_a_good_export_verifies(folder: Path) -> None:
    names: list[str] = []
    receipt = verify_artifact(folder, RUNTIME, "cpu", build=pipeline, progress=names.append)
    assert receipt["passed"] is True
    assert receipt["probe"] == "equal"
    assert names == [case.name for case in toy_model.build().cases()]
    assert receipt["max_abs_diff"] < 1e-5


def test_verification_needs_no_torch(folder: Path) -> None:
    code = f"""
import sys
from pathlib import Path
import toy
from cambrian.exporting.golden import verify_artifact
from cambrian_onnx import register_runtimes
receipt = verify_artifact(Path({str(folder)!r}), register_runtimes()[0], "cpu",
    build=lambda session: toy.ToyPipeline(session, toy.ToyProcessor(), toy.ToyConfig()))
print(receipt["passed"], receipt["probe"], "torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(toy.__file__).parent)},
        check=True,
    )
    assert done.stdout.split() == ["True", "equal", "False"]
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["decoder_model.onnx", "config.json", "toy.json", GOLDEN])
def test_a_changed_file_is_named_before_anything_runs(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BrokenFile, match=f"{name} is not the file that was exported"):
        verify_artifact(folder, RUNTIME, "cpu")


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "generator_model.onnx").unlink()
    with pytest.raises(BrokenFile, match=r"generator_model\.onnx is missing"):
        verify_artifact(folder, RUNTIME, "cpu")


def test_an_edited_card_is_no_damage(folder: Path) -> None:
    (folder / "README.md").write_text("# My own words\n")
    assert verify_artifact(folder, RUNTIME, "cpu")["passed"]


@pytest.mark.parametrize(
    ("file", "tensor", "case"),
    [
        ("decoder_model.onnx", "wpe.weight", "'longest'"),
        ("decoder_model.onnx", "norm.bias", "differs by"),
        ("generator_model.onnx", "up.bias", "'pictures'"),
    ],
)
def test_right_hashes_but_wrong_numbers_are_rejected(
    folder: Path, file: str, tensor: str, case: str
) -> None:
    model = onnx.load(folder / file)
    found = next(t for t in model.graph.initializer if t.name == tensor)
    array = numpy_helper.to_array(found).copy()
    array[-1] += 0.01  # of the positions, the last: only the longest case gets there
    found.CopyFrom(numpy_helper.from_array(array, tensor))
    onnx.save(model, folder / file)
    rehash(folder)
    with pytest.raises(Rejected, match=case):
        verify_artifact(folder, RUNTIME, "cpu")


def test_numbers_of_another_type_are_rejected(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine's integers are not floats that may differ by nothing, and so by anything."""
    run = OnnxSession.run

    def rounded(self, graph, inputs, state=None):
        outputs, state = run(self, graph, inputs, state)
        return {name: value.astype(np.int64) for name, value in outputs.items()}, state

    monkeypatch.setattr(OnnxSession, "run", rounded)
    with pytest.raises(Rejected, match="holds int64, not float32"):
        verify_artifact(folder, RUNTIME, "cpu")


def test_a_changed_processor_or_pipeline_is_rejected(folder: Path) -> None:
    class Sampling(toy.ToyPipeline):
        def probe(self):
            return {"tokens": super().probe()["tokens"] + 1}

    def build(session):
        return Sampling(session, toy.ToyProcessor(), toy.ToyConfig())

    with pytest.raises(Rejected, match=r"probe.*12 of 12 integers differ"):
        verify_artifact(folder, RUNTIME, "cpu", build=build)


def test_no_golden_vectors_no_verdict(folder: Path) -> None:
    (folder / GOLDEN).write_bytes(b"\x08" + bytes(7) + b"{}      ")
    rehash(folder)
    with pytest.raises(BrokenFile, match="no file of golden vectors"):
        verify_artifact(folder, RUNTIME, "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": {"../secret": "0" * 64}}, "outside the folder"),
        ({"graphs": {}, "files": 3}, "malformed"),
        ({"files": {}}, "has no hash of"),
        ({"receipt": {"limit": "high"}}, "no number"),
    ],
)
def test_a_manifest_is_not_trusted(folder: Path, change: dict, message: str) -> None:
    manifest = json.loads((folder / MANIFEST).read_text()) | change
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BrokenFile, match=message):
        verify_artifact(folder, RUNTIME, "cpu")


def test_a_folder_without_manifest_is_no_export(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="not an exported folder"):
        Artifact.open(tmp_path)


def test_golden_vectors_are_small_and_sampled_everywhere() -> None:
    value = np.arange(5 * 300 * 700, dtype=np.float32).reshape(5, 300, 700)
    chosen = sample(value, "case", "logits")
    assert chosen.size == SAMPLES
    np.testing.assert_array_equal(chosen, sample(value, "case", "logits"))
    assert not np.array_equal(chosen, sample(value, "other case", "logits"))
    counts, _ = np.histogram(chosen, bins=8, range=(0, value.size))
    assert counts.min() > SAMPLES / 16  # no corner is left out
    small = np.eye(4, dtype=np.float32)
    np.testing.assert_array_equal(sample(small, "case", "x"), small.ravel())


def test_last_choices_are_those_of_the_last_position() -> None:
    logits = np.random.default_rng(0).standard_normal((3, 5, 7))
    np.testing.assert_array_equal(last_choices(logits), logits[:, -1].argmax(-1))
    np.testing.assert_array_equal(last_choices(logits[:, 0]), logits[:, 0].argmax(-1))


def test_the_largest_elements_are_kept_with_the_samples(exported: Path) -> None:
    golden = load_file(exported / GOLDEN)
    inputs = golden["batch 3, length 7/0/input/input_ids"]
    assert inputs.shape == (3, 7)
    logits = golden["batch 3, length 7/0/sample/logits"].reshape(3, 7, 19)
    largest = golden["batch 3, length 7/0/largest/logits"]
    np.testing.assert_array_equal(largest, logits[:, -1].argmax(-1))
