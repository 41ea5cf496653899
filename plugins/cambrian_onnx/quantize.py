"""Weights in 8 bits or 4: of products, and of the tables whose rows are looked up.

A graph that is run token by token multiplies by blocks: a scale for every 256 weights of a column
(128 where columns are no multiple of that); each row's activations are rounded for themselves. One
that sees all tokens at once multiplies whole: a scale for each column and one for all activations
of a call, so that rows of a batch can touch each other's last bits; that is twice as fast there.
Which operators say so: `operators`.
Nothing is rounded to 4 bits here: they hold what lies on a grid of 16 steps already (see `fit`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from cambrian_onnx.fuse import array_of, bias_after, constant, constant_side, drop_unused
from cambrian_onnx.operators import MIDDLE, Columns, Held, Operators, Steps

BLOCK = 128
LONG = 256  # the same speed for one row, and a tenth more for many, where K is a multiple of it
SMALL = 1024  # weights; fewer are left alone
FINE = 32  # weights of a block in 4 bits
STEPS = 15  # above the lowest in 4 bits


Key = tuple[int, bool]


@dataclass(frozen=True)
class Made:
    """What is in the graph already, by the identity of the matrix that it was made of and whether
    that one's rows are the outputs: an embedding may be the head, too, and a layer be run twice."""

    held: dict[Key, Held] = field(default_factory=dict[Key, Held])
    columns: dict[Key, Columns] = field(default_factory=dict[Key, Columns])


def quantize(graph: ir.Graph, operators: Operators, by_block: bool, bits: int = 8) -> int:
    """Quantize every product with a constant matrix, and the tables whose rows are looked up: in
    8 bits, or where `bits` is 4 and 4 lose nothing, in these.

    Returns how many were quantized.
    """
    changed = 0
    made = Made()
    for node in list(graph):
        if node.op_type == "Gather":
            changed += quantize_table(graph, node, operators, made)
    for node in list(graph):
        if node.op_type == "MatMul":
            changed += quantize_product(graph, node, operators, made, bits if by_block else None)
    drop_unused(graph)
    return changed


def relu_as_max(graph: ir.Graph) -> int:
    """Write max(x, 0) for Relu(x) behind a product. ONNX Runtime (1.31) takes that Relu for a part
    of a product with weights in bytes, and then does not make the product its own: T5 wrote at a
    third of the speed. Returns how many were changed."""
    found = [n for n in graph if n.op_type == "Relu" and _producer(n.inputs[0]) == "MatMul"]
    if not found:
        return 0
    nodes = (value for node in graph for value in node.outputs)
    name, taken = "zero", {v.name for v in (*graph.inputs, *graph.initializers.values(), *nodes)}
    while name in taken:
        name += "_"
    zero = constant(graph, name, np.zeros((), np.float32))
    for node in found:
        _replace(graph, node, [ir.node("Max", inputs=[node.inputs[0], zero])])
    return len(found)


def _producer(value: ir.Value | None) -> str:
    """The kind of node that gives a value; "" for none."""
    node = value.producer() if value is not None else None
    return node.op_type if node is not None else ""


def blocks(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N, K) as unsigned bytes (N, C, size of a block), padded with 0, and their scales
    (N, C).

    A weight is about (byte - MIDDLE) * scale; a block's scale is its largest magnitude over 127.
    """
    rows, width = matrix.shape
    size = BLOCK if width % LONG else LONG
    count = -(-width // size)
    parts = np.zeros((rows, count * size), np.float32)
    parts[:, :width] = matrix
    parts = parts.reshape(rows, count, size)
    scales = np.abs(parts).max(-1) / 127
    steps = parts / np.where(scales, scales, 1)[..., None]
    return (np.rint(steps) + MIDDLE).astype(np.uint8), scales.astype(np.float32)


def grids(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Rows (N, K) as steps (N, C, FINE) from 0 to STEPS, padded with what stands for 0, with the
    scales and that step (N, C) of each block: a weight is (step - zero) * scale, to the last bits.

    None where a block lies on no such grid. The coarsest is taken: the largest magnitude is 1, 2
    or at most 15 steps from 0.
    """
    rows, width = matrix.shape
    count = -(-width // FINE)
    parts = np.zeros((rows, count * FINE), np.float32)
    parts[:, :width] = matrix
    parts = parts.reshape(-1, FINE)
    largest = np.abs(parts).max(-1)
    scales = np.where(largest, np.float32(np.nan), np.float32(1))
    for most in range(1, STEPS + 1):
        left = np.flatnonzero(np.isnan(scales))
        scale = largest[left] / most
        steps = parts[left] / scale[:, None]
        fits = (np.abs(steps - np.rint(steps)) < 1e-4).all(-1)
        fits &= np.rint(steps.max(-1).clip(min=0) - steps.min(-1).clip(max=0)) <= STEPS
        scales[left[fits]] = scale[fits]
    if np.isnan(scales).any():
        return None
    steps = np.rint(parts / scales[:, None])
    zeros = -steps.min(-1).clip(max=0)
    found = (steps + zeros[:, None]).astype(np.uint8).reshape(rows, count, FINE)
    return found, scales.reshape(rows, count), zeros.astype(np.uint8).reshape(rows, count)


def rounded(matrix: np.ndarray, bits: int) -> Steps:
    """Rows (N, K) in `bits`, or in 8 where 4 would lose anything."""
    width = matrix.shape[1]
    found = grids(matrix) if bits == 4 else None
    if found is not None:
        return Steps(4, width, *found)
    steps, scales = blocks(matrix)
    return Steps(8, width, steps, scales)


def columns(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(K, N) as signed bytes, and a scale for each column: its largest magnitude over 127."""
    scales = np.abs(matrix).max(0) / 127
    steps = matrix / np.where(scales, scales, 1)
    return np.rint(steps).astype(np.int8), scales.astype(np.float32)


def quantize_table(graph: ir.Graph, node: ir.Node, operators: Operators, made: Made) -> bool:
    """Look up the rows of a table of bytes."""
    table, indices = node.inputs
    if table is None or not _quantizable(table) or _shape(table)[1] % BLOCK:
        return False
    key = id(table), True
    if key not in made.held:
        steps = rounded(array_of(table), 8)
        made.held[key] = operators.hold(graph, _named(table, True), steps, table=True)
    return _replace(graph, node, operators.lookup(made.held[key], indices))


def quantize_product(
    graph: ir.Graph,
    node: ir.Node,
    operators: Operators,
    made: Made,
    bits: int | None,
) -> bool:
    """Multiply by blocks in `bits`, or whole where that is None."""
    source = node.inputs[1]
    assert source is not None
    transpose = source.producer()
    turned = transpose is not None and _turns(transpose)
    matrix = transpose.inputs[0] if transpose is not None and turned else source
    if matrix is None or not _quantizable(matrix):
        return False
    key, name = (id(matrix), turned), _named(matrix, turned)
    add = bias_after(node) if operators.add else None
    bias = constant_side(add) if add is not None else None
    if key not in made.held and key not in made.columns:
        rows = array_of(matrix) if turned else array_of(matrix).T  # (N, K)
        if bits is not None:
            made.held[key] = operators.hold(graph, name, rounded(rows, bits), table=False)
        else:
            data, scales = columns(rows.T)
            data = constant(graph, f"{name}_int8", np.ascontiguousarray(data))
            made.columns[key] = Columns(data, constant(graph, f"{name}_scales", scales))
    if key in made.held:
        product = operators.by_blocks(made.held[key], node.inputs[0], bias)
    else:
        product = operators.whole(made.columns[key], node.inputs[0], bias)
    if add is None:
        return _replace(graph, node, product)
    _replace(graph, add, product)
    graph.remove(node, safe=True)
    return True


def _named(matrix: ir.Value, turned: bool) -> str:
    return f"{matrix.name}_{'rows' if turned else 'columns'}"


def _quantizable(value: ir.Value) -> bool:
    shape = _shape(value) if value.is_initializer() else []
    return len(shape) == 2 and value.dtype == ir.DataType.FLOAT and shape[0] * shape[1] >= SMALL


def _shape(value: ir.Value) -> list[int]:
    assert value.const_value is not None
    return list(value.const_value.shape.numpy())


def _turns(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and list(node.attributes["perm"].as_ints()) == [1, 0]


def _replace(graph: ir.Graph, node: ir.Node, new: list[ir.Node]) -> bool:
    """Have other nodes, the last of which gives it, compute what a node gave."""
    graph.insert_before(node, new)
    new[-1].name = node.name
    old, made = node.outputs[0], new[-1].outputs[0]
    made.shape, made.type = old.shape, old.type
    made.name, old.name = old.name, f"{old.name}_old"
    ir.convenience.replace_all_uses_with(old, made, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return True
