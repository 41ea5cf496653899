"""What torch's tracers ask for, of a graph: for exporters that begin with one."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cambrian.artifact import Port, Signature, resolve_shape, terms
from cambrian.model import Graph

# Then 31, 33, ...: distinct, for equal sizes could be taken for one.
SIZES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29)


class Traceable(NamedTuple):
    """The first three arguments of torch.export.export and torch.onnx.export."""

    module: nn.Module
    args: tuple[Tensor, ...]
    dynamic_shapes: tuple[tuple[dict[int, Any], ...]]


def traceable(graph: Graph) -> Traceable:
    """The graph as a module that takes its inputs in order, example inputs, and which of their
    dimensions are free: those that the signature names."""
    ports = graph.signature.inputs
    free = tuple(
        {
            axis: torch.export.Dim.DYNAMIC
            for axis, dim in enumerate(port.shape)
            if isinstance(dim, str)
        }
        for port in ports
    )
    return Traceable(_Positional(graph).eval(), example(graph.signature), (free,))


class _Positional(nn.Module):
    """The graph's module with its inputs in order: names like "present.0.key" are no arguments."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.module = graph.module
        self.names = [port.name for port in graph.signature.inputs]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.module(**dict(zip(self.names, inputs, strict=True)))


def example(signature: Signature) -> tuple[Tensor, ...]:
    """Inputs to trace with: every named dimension has a size of its own, at least 2."""
    names = dict.fromkeys(
        name for port in signature.inputs for dim in port.shape for _, name in terms(dim) if name
    )
    sizes = dict(zip(names, itertools.chain(SIZES, itertools.count(31, 2)), strict=False))
    generator = torch.Generator().manual_seed(0)
    return tuple(
        _filled(port, resolve_shape(port.shape, sizes), generator) for port in signature.inputs
    )


def _filled(port: Port, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    dtype: torch.dtype = getattr(torch, port.dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.ones(shape, dtype=dtype)
