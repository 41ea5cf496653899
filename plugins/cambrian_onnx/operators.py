"""The operators that compute with quantized weights: ONNX Runtime's own, or the standard's.

The standard says it in small steps (DequantizeLinear by blocks and MatMul; DynamicQuantizeLinear
and MatMulInteger), which any engine can follow and ONNX Runtime, on loading, makes its own
operators of. A bias is an addition of its own there.

Sources: onnxruntime, docs/ContribOperators.md; onnx, docs/Operators.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import onnx_ir as ir

from cambrian_onnx.fuse import DOMAIN, constant

UINT4 = ir.DataType.UINT4.numpy()
MIDDLE = 128  # stands for 0 in unsigned bytes
INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level; at 0 it computes in float32, much slower


@dataclass(frozen=True)
class Steps:
    """A matrix (N, K) in blocks along its rows: a weight is (step - zero) * scale.

    steps (N, C, size of a block), zeros (N, C) or MIDDLE: uint8 below 2 ** bits; scales (N, C).
    What K lacks to full blocks is filled with zeros.
    """

    bits: int
    width: int
    steps: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None = None


@dataclass(frozen=True)
class Held:
    """A quantized matrix in a graph; `table`: as it is looked up, a row for each of N."""

    of: Steps
    table: bool
    data: ir.Value
    scales: ir.Value
    zeros: ir.Value | None


class Columns(NamedTuple):
    """A matrix in a graph: signed bytes (K, N), and a scale for each column."""

    data: ir.Value
    scales: ir.Value


class Operators(Protocol):
    """Each method but the first gives new nodes, of which the last one gives the result."""

    add: ClassVar[bool]  # whether products take a bias

    def hold(self, graph: ir.Graph, name: str, of: Steps, table: bool) -> Held:
        """Put a matrix into the graph."""
        ...

    def lookup(self, held: Held, indices: ir.Value | None) -> list[ir.Node]:
        """Rows of a table."""
        ...

    def by_blocks(self, held: Held, x: ir.Value | None, bias: ir.Value | None) -> list[ir.Node]:
        """x (..., K) by the matrix, turned: (..., N)."""
        ...

    def whole(self, columns: Columns, x: ir.Value | None, bias: ir.Value | None) -> list[ir.Node]:
        """x (..., K) by a matrix (K, N)."""
        ...


class OwnOperators:
    """ONNX Runtime's, of the domain com.microsoft: fast as they stand in the file."""

    add: ClassVar[bool] = True

    def hold(self, graph: ir.Graph, name: str, of: Steps, table: bool) -> Held:
        small = of.bits == 4
        zeros = None if of.zeros is None else halves(of.zeros)
        return Held(
            of,
            table,
            constant(graph, f"{name}_uint{of.bits}", halves(of.steps) if small else of.steps),
            constant(graph, f"{name}_scales", of.scales),
            None if zeros is None else constant(graph, f"{name}_zeros", zeros),
        )

    def lookup(self, held: Held, indices: ir.Value | None) -> list[ir.Node]:
        flat = ir.node("Flatten", inputs=[held.data])  # to (N, K)
        attributes = {"bits": 8, "block_size": held.of.steps.shape[-1]}
        attributes |= {"gather_axis": 0, "quantize_axis": 1}
        inputs = [flat.outputs[0], indices, held.scales]
        return [flat, _own("GatherBlockQuantized", inputs, attributes)]

    def by_blocks(self, held: Held, x: ir.Value | None, bias: ir.Value | None) -> list[ir.Node]:
        attributes = {"N": len(held.of.steps), "K": held.of.width, "bits": held.of.bits}
        attributes |= {"block_size": held.of.steps.shape[-1], "accuracy_level": INT8_ACTIVATIONS}
        inputs = [x, held.data, held.scales, held.zeros, None, bias]
        return [_own("MatMulNBits", inputs, attributes)]

    def whole(self, columns: Columns, x: ir.Value | None, bias: ir.Value | None) -> list[ir.Node]:
        data, scales = columns
        return [_own("DynamicQuantizeMatMul", [x, data, scales, None, bias], {})]


class StandardOperators:
    """The standard's, since opset 21."""

    add: ClassVar[bool] = False

    def __init__(self) -> None:
        self._activations: dict[int, ir.Node] = {}  # quantized once for all that read them

    def hold(self, graph: ir.Graph, name: str, of: Steps, table: bool) -> Held:
        rows = of.steps.reshape(len(of.steps), -1)[:, : of.width]
        small = of.bits == 4
        steps = rows.astype(UINT4) if small else (rows ^ MIDDLE).view(np.int8)
        zeros = None if of.zeros is None else of.zeros.astype(UINT4)
        kind = "uint4" if small else "int8"

        def put(what: str, array: np.ndarray) -> ir.Value:
            turned = array if table else np.ascontiguousarray(array.T)
            return constant(graph, f"{name}_{what}", turned)

        return Held(
            of,
            table,
            put(kind, steps),
            put("scales", of.scales),
            None if zeros is None else put("zeros", zeros),
        )

    def lookup(self, held: Held, indices: ir.Value | None) -> list[ir.Node]:
        rows, scales = (
            ir.node("Gather", inputs=[value, indices]) for value in (held.data, held.scales)
        )
        return [rows, scales, _dequantized(held, rows.outputs[0], scales.outputs[0], axis=-1)]

    def by_blocks(self, held: Held, x: ir.Value | None, bias: ir.Value | None) -> list[ir.Node]:
        made: list[ir.Node] = []
        data, scales = held.data, held.scales
        if held.table:  # which ONNX Runtime turns once, on loading
            turned = (
                ir.node("Transpose", inputs=[v], attributes={"perm": [1, 0]})
                for v in (data, scales)
            )
            made.extend(turned)
            data, scales = (node.outputs[0] for node in made)
        made.append(_dequantized(held, data, scales, axis=0))
        return [*made, ir.node("MatMul", inputs=[x, made[-1].outputs[0]])]

    def whole(self, columns: Columns, x: ir.Value | None, bias: ir.Value | None) -> list[ir.Node]:
        data, scales = columns
        made: list[ir.Node] = []
        if id(x) not in self._activations:
            quantized = ir.node("DynamicQuantizeLinear", inputs=[x], num_outputs=3)
            self._activations[id(x)] = quantized
            made.append(quantized)
        steps, scale, zero = self._activations[id(x)].outputs
        product = ir.node("MatMulInteger", inputs=[steps, data, zero])
        real = ir.node("Cast", inputs=product.outputs, attributes={"to": ir.DataType.FLOAT})
        factor = ir.node("Mul", inputs=[scale, scales])
        return [
            *made,
            product,
            real,
            factor,
            ir.node("Mul", inputs=[real.outputs[0], factor.outputs[0]]),
        ]


def halves(values: np.ndarray) -> np.ndarray:
    """Two numbers below 16 in each byte, along the last axis, the first one in the lower bits."""
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    return values[..., ::2] | values[..., 1::2] << 4


def _own(kind: str, inputs: list[ir.Value | None], attributes: dict[str, int]) -> ir.Node:
    return ir.node(kind, domain=DOMAIN, inputs=inputs, attributes=attributes)


def _dequantized(held: Held, data: ir.Value, scales: ir.Value, axis: int) -> ir.Node:
    attributes = {"axis": axis, "block_size": held.of.steps.shape[-1]}
    inputs = [data, scales, *([] if held.zeros is None else [held.zeros])]
    return ir.node("DequantizeLinear", inputs=inputs, attributes=attributes)
