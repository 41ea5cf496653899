"""Recurrent layers in the ONNX exporters: one operator, of free length, however often exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from cambrian.artifact import Port, Signature
from cambrian.errors import UsageError
from cambrian.model import Graph
from cambrian_onnx.exporter import write_graph

ROWS = ("batch", "sequence", 8)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.layer = kind(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.layer(x)[0],)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrent_layer_is_one_operator_of_free_length(
    kind: type[nn.LSTM | nn.GRU], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = Recurrent(kind).eval()
    signature = Signature(
        inputs=(Port("x", "float32", ROWS),), outputs=(Port("y", "float32", ROWS),)
    )
    for number, fused in enumerate((False, True)):  # the second used to fail
        file = tmp_path / f"{number}.onnx"
        write_graph(Graph(name="rows", module=module, signature=signature), file, fused=fused)
        assert [node.op_type for node in onnx.load(file).graph.node].count(kind.__name__) == 1
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        for shape in ((1, 1, 8), (3, 19, 8)):
            x = torch.randn(shape)
            with torch.no_grad():
                want = module(x)[0].numpy()
            np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], want, atol=1e-5)


def test_half_precision_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime 1.31 ends the process where it loads an LSTM in float16 on a CPU."""
    ports = [(Port(name, "float16", ROWS),) for name in "xy"]
    signature = Signature(inputs=ports[0], outputs=ports[1])
    graph = Graph(name="rows", module=Recurrent(nn.LSTM).half().eval(), signature=signature)
    with pytest.raises(UsageError, match=r"holds a layer of LSTM.*export it in float32"):
        write_graph(graph, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
