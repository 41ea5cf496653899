"""T5 in float16: what would leave its range stays in float32."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from cambrian import __version__
from cambrian.api import export
from cambrian.checkpoint import save_description, save_weights
from cambrian.data.tokenizer import fitted
from cambrian.errors import Rejected
from cambrian.exporting.parity import TOLERANCES
from cambrian_onnx.exporter import half
from cambrian_t5 import register_models
from cambrian_t5.config import T5Config
from cambrian_t5.data import SPECIALS
from cambrian_t5.model import T5

[SPEC] = register_models()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 whose feed-forward sublayers add 100,000 and more to the residual stream."""
    folder = tmp_path_factory.mktemp("models") / "loud"
    tokenizer = fitted("char", 150, ["some letters"], SPECIALS)
    settings = T5Config(
        vocab_size=tokenizer.vocab_size,
        d_model=32,
        d_kv=8,
        d_ff=40,
        num_layers=1,
        num_heads=4,
        relative_attention_max_distance=24,
    )
    torch.manual_seed(0)
    model = T5(settings).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("wo.weight"):
                parameter.mul_(7e4)
                assert parameter.abs().max() < 65504  # the weights have room, their sums do not
    save_description(folder, SPEC, settings, tokenizer, __version__)
    save_weights(folder, SPEC, settings, model)
    return folder


def test_only_what_the_model_names_stays_in_float32() -> None:
    settings = T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
    model = T5(settings)
    kept = {n for n, p in half(model).named_parameters() if p.dtype == torch.float32}
    norms = {n for n, _ in model.named_parameters() if "layer_norm" in n}
    assert kept == norms | {n for n, _ in model.named_parameters() if n.endswith("wo.weight")}
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_what_is_beyond_float16_is_computed_in_float32(folder: Path, tmp_path: Path) -> None:
    artifact = export(folder, tmp_path / "onnx", precision="float16")
    receipt = artifact.manifest.receipt
    assert receipt["passed"] and receipt["limit"] == TOLERANCES["float16"]
    assert receipt["relative_rms"] < 0.01
    for name, graph in artifact.manifest.graphs.items():
        body = onnx.load(tmp_path / "onnx" / graph.file).graph
        floats = [port for port in graph.signature.outputs if port.dtype.startswith("float")]
        assert {port.dtype for port in floats} == {"float16"}, name
        kinds = {value.type.tensor_type.elem_type for value in body.output}
        assert kinds == {onnx.TensorProto.FLOAT16}, name
        stored = {value.name: value.data_type for value in body.initializer}
        assert stored["model.lm_head.weight"] == onnx.TensorProto.FLOAT16


def test_without_it_the_same_model_overflows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(T5, "keep_in_float32", ())
    with pytest.raises(Rejected, match="NaN or infinity"):
        export(folder, tmp_path / "onnx", precision="float16")
