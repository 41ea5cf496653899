"""Weights that two graphs of a model hold are written once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx.external_data_helper import ExternalDataInfo

from cambrian import api, load_registry
from cambrian.artifact import Artifact
from cambrian.checkpoint import save_description, save_weights
from cambrian.errors import BrokenFile
from cambrian.testing import built, prepared
from cambrian_onnx import store

ENCODER, DECODER = "encoder_model.onnx.data", "decoder_model.onnx.data"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small T5, in a process where a few kilobytes are many."""
    monkeypatch.setattr(store, "INLINE_LIMIT", 10_000)
    monkeypatch.setattr(store, "SHARED", 10_000)
    spec = load_registry().models["t5"]
    data, _ = prepared(spec)
    folder = tmp_path / "model"
    config = spec.config(**{**vars(data.config), "d_model": 128})
    save_description(folder, spec, config, data.processor, "0")
    save_weights(folder, spec, config, built(spec, config))
    return folder


def held(file: Path) -> dict[str, tuple[str, int, int]]:
    """Where a graph's tensors lie: file, offset and length."""
    tensors = onnx.load(file, load_external_data=False).graph.initializer
    found = {t.name: ExternalDataInfo(t) for t in tensors if t.external_data}
    return {name: (info.location, info.offset, info.length) for name, info in found.items()}


@pytest.mark.parametrize(
    ("format", "precision"), [("onnx", "float32"), ("onnx-ort", "float32"), ("onnx-ort", "float16")]
)
def test_an_embedding_is_written_once(
    model: Path, tmp_path: Path, format: str, precision: str
) -> None:
    """And the sweep, by which an export is proved, reads it through either graph."""
    out = api.export(model, tmp_path / "out", format=format, precision=precision).path
    encoder, decoder = (held(out / f"{name}_model.onnx") for name in ("encoder", "decoder"))
    size = {"float32": 4, "float16": 2}[precision]
    config = api.open_checkpoint(model).config
    [shared] = {name for name, (file, _, _) in decoder.items() if file == ENCODER}
    assert decoder[shared] in encoder.values()
    assert decoder[shared][2] == config.vocab_size * config.d_model * size
    assert {file for file, _, _ in encoder.values()} == {ENCODER}
    own = [place for place in decoder.values() if place[0] == DECODER]
    assert sum(length for _, _, length in own) == (out / DECODER).stat().st_size
    assert len(own) > 5
    assert Artifact.open(out).manifest.files.keys() >= {ENCODER, DECODER}


def test_a_shared_file_that_is_lost_is_named(model: Path, tmp_path: Path) -> None:
    out = api.export(model, tmp_path / "out").path
    (out / ENCODER).unlink()
    with pytest.raises(BrokenFile, match=f"{ENCODER} is missing"):
        api.load(out)


def test_other_numbers_are_other_weights() -> None:
    """Of the same bytes but another shape or type, too."""
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    others = [array + 1, array.reshape(4, 3), array.view(np.int32), array.T]
    assert store.content(ir.tensor(array)) == store.content(ir.tensor(array.copy()))
    found = {store.content(ir.tensor(each)) for each in [array, *others]}
    assert len(found) == 5


def test_a_graph_that_has_nothing_of_its_own_leaves_no_empty_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "INLINE_LIMIT", 1000)
    monkeypatch.setattr(store, "SHARED", 1000)
    rows = np.arange(1024, dtype=np.float32)
    folder = store.Store(tmp_path)
    for name in ("one", "two"):
        x = ir.val("x", dtype=ir.DataType.FLOAT, shape=(1024,))
        weights = ir.val(f"{name}.w", const_value=ir.tensor(rows, name=f"{name}.w"))
        add = ir.node("Add", inputs=[x, weights])
        add.outputs[0].name = "y"
        graph = ir.Graph(
            [x], add.outputs, nodes=[add], initializers=[weights], opset_imports={"": 20}, name=name
        )
        folder.write(ir.Model(graph, ir_version=10), tmp_path / f"{name}.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"one.onnx", "one.onnx.data", "two.onnx"}
    [result] = onnxruntime.InferenceSession(tmp_path / "two.onnx").run(None, {"x": rows})
    np.testing.assert_array_equal(result, 2 * rows)
