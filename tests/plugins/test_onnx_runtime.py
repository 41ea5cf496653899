"""The ONNX Runtime engine: devices are strict, state stays where it is, nothing is noisy."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import toy
import toy_model
from cambrian.artifact import MANIFEST
from cambrian.errors import BrokenFile, CambrianError, UsageError
from cambrian_onnx import register_exporters, store
from cambrian_onnx.runtime import CPU, OnnxRuntime, _cores, _has_nvidia_driver, locations

without_gpu = pytest.mark.skipif(_has_nvidia_driver(), reason="this machine has a GPU")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_model.export(tmp_path_factory.mktemp("exported") / "toy").path


@without_gpu
def test_cuda_is_never_replaced_in_silence(folder: Path, capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(CambrianError, match=r"cannot use CUDA here.*--device cpu"):
        OnnxRuntime().open(folder, "cuda")
    assert capfd.readouterr() == ("", "")


@without_gpu
def test_auto_takes_what_there_is(folder: Path, capfd: pytest.CaptureFixture) -> None:
    session = OnnxRuntime().open(folder, "auto")
    assert session.provider == CPU
    assert session.settings["threads"] == _cores()
    assert capfd.readouterr() == ("", "")


def test_unknown_devices_and_formats_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no device 'tpu'"):
        OnnxRuntime().open(folder, "tpu")
    other = shutil.copytree(folder, tmp_path / "other")
    manifest = (other / MANIFEST).read_text().replace('"format": "onnx"', '"format": "gguf"')
    (other / MANIFEST).write_text(manifest)
    with pytest.raises(UsageError, match="gguf"):
        OnnxRuntime().open(other, "cpu")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("outputs", 0, "name"), "other", "no output 'other'"),
        (("outputs", 0, "dtype"), "int64", "no output 'logits'"),
        (("inputs", 0, "name"), "other", "no input 'other'"),
        (("inputs", 3, "dtype"), "x", "no input 'past_key_values.0.key'"),
        (("inputs", 3, "shape"), [10**15], "no input 'past_key_values.0.key'"),
        (("inputs", 3, "shape", 1), 10**15, "no input 'past_key_values.0.key'"),
        (("inputs", 3, "shape", 1), "9*batch", "no input 'past_key_values.0.key'"),
        (("inputs",), [], "an input 'attention_mask'"),
        (("outputs",), [], "as state, which is no output"),
        (("length",), "filled", "no input 'filled'"),
    ],
)
def test_a_manifest_that_the_file_does_not_bear_out(
    folder: Path, place: tuple, value: object, message: str, tmp_path: Path
) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    manifest = json.loads((other / MANIFEST).read_text())
    graph = manifest["graphs"]["decoder"]
    part = graph if place[0] == "length" else graph["signature"]
    for step in place[:-1]:
        part = part[step]
    part[place[-1]] = value
    (other / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BrokenFile, match=message):
        OnnxRuntime().open(other, "cpu")


def test_state_in_a_buffer_goes_from_graph_to_graph(tmp_path: Path) -> None:
    fused = next(spec for spec in register_exporters() if spec.name == "onnx-ort")
    folder = toy_model.export(tmp_path / "toy", exporter=fused).path
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["graphs"]["again"] = manifest["graphs"]["decoder"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    session, other = (OnnxRuntime().open(folder, "cpu") for _ in range(2))
    _, state = session.run("decoder", toy.decoder_inputs(np.array([[1, 2, 3]]), 0))
    step = toy.decoder_inputs(np.array([[4]]), 3)
    want, _ = session.run("decoder", step, session.take(state, np.array([0])))
    for engine, graph in ((session, "again"), (other, "decoder"), (session, "decoder")):
        got, _ = engine.run(graph, step, state)
        np.testing.assert_array_equal(got["logits"], want["logits"])


def test_a_damaged_graph_is_not_loaded(folder: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    (damaged / "decoder_model.onnx").write_bytes(b"no protobuf")
    with pytest.raises(BrokenFile, match=r"decoder_model\.onnx"):
        OnnxRuntime().open(damaged, "cpu")


def test_weights_that_no_hash_covers_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "INLINE_LIMIT", 1000)
    folder = toy_model.export(tmp_path / "toy").path
    OnnxRuntime().open(folder, "cpu")
    name = "decoder_model.onnx.data"
    assert locations(folder / "decoder_model.onnx") == {name}
    long = "x" * 300  # whose length takes two bytes
    entry = onnx.StringStringEntryProto(key="location", value=long)
    tensor = onnx.TensorProto(external_data=[entry], data_location=onnx.TensorProto.EXTERNAL)
    (tmp_path / "odd.onnx").write_bytes(tensor.SerializeToString())
    assert locations(tmp_path / "odd.onnx") == {long}
    (tmp_path / "odd.onnx").write_bytes(b"")
    assert locations(tmp_path / "odd.onnx") == set()
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["files"][name]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BrokenFile, match=rf"{name}, of which .* has no hash"):
        OnnxRuntime().open(folder, "cpu")


def test_state_is_the_engines_own_value(folder: Path) -> None:
    session = OnnxRuntime().open(folder, "cpu")
    ids = np.array([[1, 2, 3]])
    _, state = session.run("decoder", toy.decoder_inputs(ids, 0))
    for value in state.values():
        assert isinstance(value, onnxruntime.OrtValue)
        assert tuple(value.shape()) == (1, 2, 3, 8)


def test_a_graph_takes_rows_where_numpy_cannot(folder: Path) -> None:
    """What serves on a GPU, checked on the CPU."""
    session = OnnxRuntime().open(folder, "cpu")
    _, state = session.run("decoder", toy.decoder_inputs(np.array([[1, 2], [3, 4]]), 0))
    rows = np.array([1, 0, 1])
    expected = session.take(state, rows)
    for dtype in (np.float32, np.float16):
        for name, value in state.items():
            held = onnxruntime.OrtValue.ortvalue_from_numpy(value.numpy().astype(dtype))
            found = session._gathered(held, rows).numpy()
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, expected[name].numpy().astype(dtype))


def test_outputs_outlive_the_session(folder: Path) -> None:
    session = OnnxRuntime().open(folder, "cpu")
    outputs, _ = session.run("decoder", toy.decoder_inputs(np.array([[1, 2, 3]]), 0))
    kept = outputs["logits"].copy()
    for _ in range(20):
        session.run("decoder", toy.decoder_inputs(np.array([[4, 5, 6]]), 0))
    session.close()
    np.testing.assert_array_equal(outputs["logits"], kept)


def test_what_the_engine_cannot_compute_is_one_sentence(folder: Path) -> None:
    session = OnnxRuntime().open(folder, "cpu")
    inputs = toy.decoder_inputs(np.array([[99]]), 0)
    with pytest.raises(CambrianError, match=r"cannot compute decoder.*out of") as caught:
        session.run("decoder", inputs)
    assert "\n" not in str(caught.value)


def test_running_imports_no_torch(folder: Path) -> None:
    code = f"""
import sys
from pathlib import Path
import numpy as np
from cambrian_onnx.runtime import OnnxRuntime
session = OnnxRuntime().open(Path({str(folder)!r}), "auto")
noise = {{"noise": np.zeros((2, 8), np.float32), "label": np.zeros(2, np.int64)}}
outputs, _ = session.run("generator", noise)
print(outputs["picture"].shape, sorted({{"torch", "onnx"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(2, 3, 4, 4) []"
    assert done.stderr == ""


def test_describing_the_plugin_imports_nothing_slow() -> None:
    code = """
import sys, cambrian_onnx
cambrian_onnx.register_exporters(); cambrian_onnx.register_runtimes()
print(sorted({"torch", "onnx", "onnxruntime", "numpy"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
