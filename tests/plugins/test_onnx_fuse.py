"""Graphs of third parties, for ONNX Runtime alone: as fast as ours or else as they were."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from cambrian.artifact import GraphFile, Port, Signature
from cambrian.model import Graph
from cambrian_onnx.exporter import write_graph

HEADS, SIZE = 4, 8
WIDTH = HEADS * SIZE


class Attention(nn.Module):
    """Attention whose result is the graph's, with keys of `groups` heads, values `wide` each."""

    def __init__(self, groups: int = HEADS, wide: int = SIZE) -> None:
        super().__init__()
        self.groups = groups
        sizes = (WIDTH, groups * SIZE, groups * wide)
        self.parts = nn.ModuleList(nn.Linear(WIDTH, size) for size in sizes)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        rows, time, _ = x.shape
        query, key, value = (
            part(x).view(rows, time, heads, -1).transpose(1, 2)
            for part, heads in zip(self.parts, (HEADS, self.groups, self.groups), strict=True)
        )
        grouped = self.groups != HEADS
        found = scaled_dot_product_attention(query, key, value, enable_gqa=grouped)
        return (found.transpose(1, 2).flatten(2),)


class Heads(nn.Module):
    """Scores that two products make, or one; the first of them wanted as it is, or not."""

    def __init__(self, two: bool, shown: bool) -> None:
        super().__init__()
        self.two, self.shown = two, shown
        self.first, self.second = (nn.Linear(WIDTH, 50) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        scores = self.first(x)
        added = scores + self.second(x).tanh() if self.two else scores * 2
        return (added, scores.sum(1)) if self.shown else (added,)


def check(module: nn.Module, outputs: Mapping[str, tuple], folder: Path) -> GraphFile:
    """Export with one output cut to its last entry, if it can be, and compare with the module."""
    ports = tuple(Port(name, "float32", shape) for name, shape in outputs.items())
    shape = ("batch", "time", WIDTH)
    signature = Signature(inputs=(Port("x", "float32", shape),), outputs=ports)
    graph = Graph(name="g", module=module.eval(), signature=signature, last={"y": 1})
    found = write_graph(graph, folder / "model.onnx", fused=True)
    x = torch.randn((2, 7, WIDTH), generator=torch.Generator().manual_seed(0))
    engine = onnxruntime.InferenceSession(folder / "model.onnx")
    given = zip(found.signature.outputs, engine.run(None, {"x": x.numpy()}), strict=True)
    with torch.no_grad():
        for want, (port, got) in zip(module(x), given, strict=True):
            last = slice(-1, None) if 1 in port.shape else slice(None)
            np.testing.assert_allclose(got, want[:, last].numpy(), atol=1e-5)
    return found


@pytest.mark.parametrize(
    ("groups", "wide", "fused"), [(HEADS, SIZE, True), (HEADS, 2 * SIZE, True), (2, SIZE, False)]
)
def test_attention_whose_result_is_the_graphs(
    groups: int, wide: int, fused: bool, tmp_path: Path
) -> None:
    check(Attention(groups, wide), {"y": ("batch", "time", HEADS * wide)}, tmp_path)
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    (node,) = (node for node in nodes if node.op_type == "Attention")
    assert ("kv_num_heads" in {each.name for each in node.attribute}) is fused


@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("shown", [False, True])
def test_only_scores_that_one_product_makes_are_cut(two: bool, shown: bool, tmp_path: Path) -> None:
    more = {"sum": ("batch", 50)} if shown else {}
    found = check(Heads(two, shown), {"y": ("batch", "time", 50), **more}, tmp_path)
    assert (found.signature.outputs[0].shape[1] == 1) is not (two or shown)
