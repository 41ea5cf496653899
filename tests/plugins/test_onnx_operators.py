"""Quantized weights in the standard's operators: what they say, what ONNX Runtime makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from cambrian import load_registry
from cambrian.model import Model
from cambrian.runtime.torch import TorchSession
from cambrian.testing import built, prepared
from cambrian_onnx.exporter import OnnxExporter, OrtExporter
from cambrian_onnx.fit import fitted
from cambrian_onnx.operators import MIDDLE, Operators, OwnOperators, StandardOperators
from cambrian_onnx.quantize import BLOCK, quantize, relu_as_max, rounded
from cambrian_onnx.runtime import _options, optimised


def model_of(family: str, **changes: Any) -> Model:
    spec = load_registry().models[family]
    data, _ = prepared(spec)
    torch.manual_seed(0)
    return built(spec, spec.config(**{**vars(data.config), **changes})).eval()


def gpt(width: int) -> Model:
    """Of 300 tokens, whose embedding is the head; the head and two products are `width` wide."""
    return model_of("gpt", n_embd=width, n_head=2, vocab_size=300)


def on_grids(model: Model) -> None:
    """Round each product's weights to what 4 bits hold without loss."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight.detach()
            module.weight.data = fitted(weight, torch.eye(weight.shape[1]))


def as_rounded(model: Model, bits: int) -> None:
    """Make each weight what the export says that it is."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for module in model.modules():
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        weight, table = module.weight.detach(), id(module.weight) in tables
        if isinstance(module, nn.Embedding) and weight.shape[1] % BLOCK:
            continue  # rows that are no whole blocks are looked up as they are
        whole = table and not weight.shape[1] % BLOCK
        found = rounded(weight.numpy(), 8 if whole else bits)
        zeros = MIDDLE if found.zeros is None else found.zeros[..., None]
        weights = (found.steps.astype(np.float32) - zeros) * found.scales[..., None]
        back = torch.from_numpy(weights.reshape(len(weights), -1)[:, : found.width])
        module.weight = nn.Parameter(back.contiguous())  # the embedding's and the head's, apart


def fed(graph: onnx.GraphProto, rows: int = 2, length: int = 5) -> dict[str, np.ndarray]:
    """Inputs of a graph of text: numbers of tokens below 300, nothing masked, an empty past."""
    ids = np.random.default_rng(0).integers(0, 300, (rows, length))
    arrays = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
        "position_ids": np.broadcast_to(np.arange(length), ids.shape),
    }
    for value in graph.input:
        if value.name.startswith("past_key_values"):
            _, heads, _, size = (dim.dim_value for dim in value.type.tensor_type.shape.dim)
            arrays[value.name] = np.zeros((rows, heads, 0, size), np.float32)
    return {value.name: arrays[value.name] for value in graph.input}


@pytest.mark.parametrize(
    ("width", "precision"), [(128, "int8"), (80, "int8"), (256, "int8"), (128, "int4")]
)
def test_any_engine_computes_what_the_rounded_weights_say(
    width: int, precision: str, tmp_path: Path
) -> None:
    """By the standard's reference implementation, which shares nothing with ONNX Runtime."""
    model = gpt(width)
    if precision == "int4":
        on_grids(model)
    OnnxExporter().export(model, tmp_path, precision=precision)
    proto = onnx.load(tmp_path / "model.onnx")
    assert {node.domain for node in proto.graph.node} == {""}
    inputs = fed(proto.graph)
    found = ReferenceEvaluator(proto).run(["logits"], inputs)[0]
    as_rounded(model, int(precision[3:]))
    past = {name: value for name, value in inputs.items() if name.startswith("past")}
    rest = {name: value for name, value in inputs.items() if name not in past}
    state = {name: torch.from_numpy(value) for name, value in past.items()}
    wanted = TorchSession(model).run("decoder", rest, state)[0]["logits"]
    assert np.abs(wanted).max() > 0.5
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_an_encoder_reads_each_activation_once(tmp_path: Path) -> None:
    model = model_of("bert-classifier")
    OnnxExporter().export(model, tmp_path, precision="int8")
    proto = onnx.load(tmp_path / "model.onnx")
    kinds = [node.op_type for node in proto.graph.node]
    layers: int = model.config.num_hidden_layers  # pyright: ignore[reportAttributeAccessIssue]
    assert kinds.count("MatMulInteger") == 6 * layers and "MatMul" not in kinds
    assert kinds.count("DynamicQuantizeLinear") == 4 * layers  # query, key and value share one
    inputs = fed(proto.graph)
    found = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, inputs)[0]
    wanted = ReferenceEvaluator(proto).run(None, inputs)[0]
    np.testing.assert_allclose(found, wanted, atol=1e-3)


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("family", ["gpt", "t5"])
def test_onnx_runtime_makes_its_own_products_of_them(
    family: str, precision: str, tmp_path: Path
) -> None:
    """As many as where they stand in the file: the same speed."""
    t5 = {"d_model": 128, "d_ff": 256, "vocab_size": 300, "feed_forward_proj": "relu"}
    model = gpt(128) if family == "gpt" else model_of("t5", **t5)
    if precision == "int4":
        on_grids(model)
    counts: list[dict[str, int]] = []
    for exporter in (OnnxExporter, OrtExporter):
        folder = tmp_path / exporter.__name__
        folder.mkdir()
        files = exporter().export(model, folder, precision=precision)
        name = next(each.file for key, each in files.items() if "encoder" not in key)
        found = optimised(folder / name, "cpu", _options(shared=False))
        counts.append({kind: n for kind, n in found.items() if "MatMul" in kind})
    ours, own = counts
    assert "MatMul" not in ours and ours["com.microsoft.MatMulNBits"] > 4
    if family == "gpt":  # T5's query, key and value are one product in the other profile
        assert ours == own


@pytest.mark.parametrize("by_block", [True, False])
@pytest.mark.parametrize("kind", [OwnOperators, StandardOperators])
def test_a_matrix_may_be_read_often_and_either_way(kind: type[Operators], by_block: bool) -> None:
    """A layer that is run twice, a decoder with its encoder's weights, a table that is a matrix."""
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((BLOCK, BLOCK)).astype(np.float32) / BLOCK**0.5
    ids = ir.val("ids", dtype=ir.DataType.INT64, shape=("rows",))
    matrix = ir.val("w", const_value=ir.tensor(weights, name="w"))
    turned = ir.node("Transpose", inputs=[matrix], attributes={"perm": [1, 0]})
    nodes = [turned, *(ir.node("Gather", inputs=[matrix, ids]) for _ in range(2))]
    nodes.append(ir.node("Add", inputs=[node.outputs[0] for node in nodes[1:]]))
    for factor in (matrix, turned.outputs[0], matrix, turned.outputs[0]):
        nodes.append(ir.node("MatMul", inputs=[nodes[-1].outputs[0], factor]))
    result = nodes[-1].outputs[0]
    result.type = ir.TensorType(ir.DataType.FLOAT)
    domains = {"": 23, "com.microsoft": 1}
    graph = ir.Graph(
        [ids], [result], nodes=nodes, initializers=[matrix], opset_imports=domains, name="graph"
    )
    assert quantize(graph, kind(), by_block) == 6
    proto = ir.to_proto(ir.Model(graph, ir_version=11))
    given = np.arange(0, BLOCK, 9)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    found = session.run(None, {"ids": given})[0]
    wanted = 2 * weights[given] @ weights @ weights.T @ weights @ weights.T
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


def test_a_name_that_the_model_has_is_no_constants() -> None:
    x = ir.val("zero", dtype=ir.DataType.FLOAT, shape=("rows", 3))
    turn = ir.val("zero_", const_value=ir.tensor(-np.eye(3, dtype=np.float32), name="zero_"))
    product = ir.node("MatMul", inputs=[x, turn])
    relu = ir.node("Relu", inputs=product.outputs)
    relu.outputs[0].name, relu.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [x],
        relu.outputs,
        nodes=[product, relu],
        initializers=[turn],
        opset_imports={"": 23},
        name="g",
    )
    assert relu_as_max(graph) == 1
    proto = ir.to_proto(ir.Model(graph, ir_version=11))
    given = np.array([[0, 1, -3]], np.float32)
    [found] = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"zero": given})
    np.testing.assert_array_equal(found, [[0, 0, 3]])


def test_what_is_not_worth_it_is_left_alone(tmp_path: Path) -> None:
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=("rows", 8))
    small = ir.val("w", const_value=ir.tensor(np.ones((8, 8), np.float32), name="w"))
    node = ir.node("MatMul", inputs=[x, small])
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[small], opset_imports={"": 23})
    assert quantize(graph, StandardOperators(), by_block=True) == 0
    assert [each.op_type for each in graph] == ["MatMul"]
