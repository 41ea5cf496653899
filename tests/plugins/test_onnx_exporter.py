"""The ONNX exporter: what the file holds, and what must not get into it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

import toy_model
from cambrian.artifact import Port, Signature
from cambrian.errors import CambrianError
from cambrian.exporting.tracing import example
from cambrian.model import Graph
from cambrian_onnx import store
from cambrian_onnx.exporter import OnnxExporter, write_graph


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    file = tmp_path_factory.mktemp("graphs") / "decoder.onnx"
    write_graph(toy_model.build().graphs()[0], file)
    return onnx.load(file)


def stateless(module: nn.Module, *shape: int | str) -> Graph:
    signature = Signature(
        inputs=(Port("x", "float32", shape),), outputs=(Port("y", "float32", shape),)
    )
    return Graph(name="odd", module=module, signature=signature)


def shapes(values) -> dict[str, list[int | str]]:
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in values
    }


def test_the_file_says_what_the_signature_says(decoder: onnx.ModelProto) -> None:
    signature = toy_model.DECODER
    assert shapes(decoder.graph.input) == {p.name: list(p.shape) for p in signature.inputs}
    assert shapes(decoder.graph.output) == {p.name: list(p.shape) for p in signature.outputs}
    assert [(opset.domain, opset.version) for opset in decoder.opset_import] == [("", 23)]
    assert decoder.producer_name == "cambrian"


def test_the_file_says_nothing_of_where_it_was_made(decoder: onnx.ModelProto) -> None:
    data = decoder.SerializeToString()
    for trace in (b"/", b"stack_trace", b"pkg.torch", b".py"):
        text = data
        for tensor in decoder.graph.initializer:
            text = text.replace(tensor.raw_data, b"")
        assert trace not in text


def test_weights_keep_the_modules_names(decoder: onnx.ModelProto) -> None:
    names = {tensor.name for tensor in decoder.graph.initializer}
    parameters = dict(toy_model.build().decoder.named_parameters())
    assert {"wte.weight", "wpe.weight", "norm.bias"} <= names & parameters.keys()


def test_a_tied_matrix_is_stored_once(decoder: onnx.ModelProto) -> None:
    floats = [t for t in decoder.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    stored = sum(numpy_helper.to_array(tensor).size for tensor in floats)
    assert stored == sum(p.numel() for p in toy_model.build().decoder.parameters())


def test_the_past_lies_inside_the_operator(decoder: onnx.ModelProto) -> None:
    (attention,) = [node for node in decoder.graph.node if node.op_type == "Attention"]
    assert list(attention.input)[4:] == ["past_key_values.0.key", "past_key_values.0.value"]
    assert list(attention.output)[1:] == ["present.0.key", "present.0.value"]


class Concatenating(nn.Module):
    """Attention as PyTorch code has it: the past is concatenated."""

    def forward(self, x: Tensor, past_key: Tensor, past_value: Tensor) -> tuple[Tensor, ...]:
        key, value = torch.cat((past_key, x), 2), torch.cat((past_value, -x), 2)
        size = key.shape[2]
        mask = torch.arange(size) <= torch.arange(size)[past_key.shape[2] :, None]
        return F.scaled_dot_product_attention(x, key, value, attn_mask=mask), key, value


def test_concatenation_of_the_past_moves_into_the_operator(tmp_path: Path) -> None:
    past = ("batch", 2, "past", 4)
    total = ("batch", 2, "past + new", 4)
    new = Port("x", "float32", ("batch", 2, "new", 4))
    signature = Signature(
        inputs=(new, Port("past_key", "float32", past), Port("past_value", "float32", past)),
        outputs=(
            Port("y", "float32", new.shape),
            Port("key", "float32", total),
            Port("value", "float32", total),
        ),
        state={"key": "past_key", "value": "past_value"},
    )
    module = Concatenating()
    write_graph(Graph(name="attend", module=module, signature=signature), tmp_path / "a.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node]
    assert operators.count("Attention") == 1
    assert "Concat" not in operators
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    for length, size in ((3, 1), (0, 5), (4, 2)):
        x, key, value = (torch.randn(1, 2, n, 4) for n in (size, length, length))
        feeds = {"x": x.numpy(), "past_key": key.numpy(), "past_value": value.numpy()}
        for got, want in zip(session.run(None, feeds), module(x, key, value), strict=True):
            np.testing.assert_allclose(got, want.numpy(), atol=1e-6)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,)),)


class Specialised(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x.view(2, -1).reshape(x.shape[0], 4) * x.new_ones(2, 1),)


@pytest.mark.parametrize(
    ("module", "message"),
    [(Branching(), "branches on data"), (Specialised(), r"cannot be exported .*shape\[0\]")],
)
def test_graphs_that_would_be_slow_or_wrong_are_refused(
    tmp_path: Path, module: nn.Module, message: str
) -> None:
    with pytest.raises(CambrianError, match=message):
        write_graph(stateless(module, "batch", 4), tmp_path / "odd.onnx")
    assert list(tmp_path.iterdir()) == []


def test_every_named_dimension_is_traced_at_a_size_of_its_own() -> None:
    given = example(toy_model.DECODER)
    assert [tuple(x.shape) for x in given] == [(2, 3), (2, 8), (2, 3), (2, 2, 5, 8), (2, 2, 5, 8)]
    assert given[0].dtype == torch.int64
    assert all(torch.equal(x, y) for x, y in zip(given, example(toy_model.DECODER), strict=True))


def test_so_many_dimensions_as_there_may_be_have_sizes_of_their_own() -> None:
    names = tuple(f"d{n}" for n in range(14))
    ports = tuple(Port(f"x{n}", "float32", names[n : n + 2]) for n in range(0, 14, 2))
    sizes = [size for x in example(Signature(inputs=ports, outputs=())) for size in x.shape]
    assert len(set(sizes)) == 14 and min(sizes) == 2


def test_large_weights_lie_beside_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "INLINE_LIMIT", 1000)
    model = toy_model.build()
    graphs = OnnxExporter().export(model, tmp_path, precision="float32")
    assert {path.name for path in tmp_path.iterdir()} == {
        *(graph.file for graph in graphs.values()),
        *(f"{graph.file}.data" for graph in graphs.values()),
    }
    inputs = [torch.ones(1, 8), torch.zeros(1, dtype=torch.int64)]
    session = onnxruntime.InferenceSession(tmp_path / graphs["generator"].file)
    feeds = {"noise": inputs[0].numpy(), "label": inputs[1].numpy()}
    want = model.generator(*inputs)[0].detach().numpy()
    np.testing.assert_allclose(session.run(None, feeds)[0], want, atol=1e-6)


def test_exporting_leaves_the_model_and_the_terminal_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    model = toy_model.build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    OnnxExporter().export(model, tmp_path, precision="float32")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert capfd.readouterr() == ("", "")
