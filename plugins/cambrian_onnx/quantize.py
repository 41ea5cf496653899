"""Weights in 8 bits or 4: products by ONNX Runtime's quantized operators, and the embedding.

A graph that is run token by token multiplies by blocks (MatMulNBits: a scale for every 128 weights
of a column; each row's activations are rounded for themselves). One that sees all tokens at once
multiplies whole (DynamicQuantizeMatMul: a scale for each column and one for all activations of a
call, so that rows of a batch can touch each other's last bits), which is twice as fast there.
Nothing is rounded to 4 bits here: they hold what lies on a grid of 16 steps already (see `fit`).
Source: onnxruntime, docs/ContribOperators.md.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from cambrian_onnx.fuse import DOMAIN, array_of, bias_after, constant, constant_side, drop_unused

BLOCK = 128
MIDDLE = 128  # stands for 0 in unsigned bytes
INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level; at 0 it computes in float32, much slower
SMALL = 1024  # weights; fewer are left alone
FINE = 32  # weights of a block in 4 bits
STEPS = 15  # above the lowest in 4 bits


def quantize(graph: ir.Graph, by_block: bool, bits: int = 8) -> int:
    """Quantize every product with a constant matrix, and the tables whose rows are looked up: in
    8 bits, or where `bits` is 4 and 4 lose nothing, in these.

    Returns how many were quantized.
    """
    changed = 0
    packed: dict[int, tuple[ir.Value, ir.Value]] = {}  # by the table that they were made of
    for node in list(graph):
        if node.op_type == "Gather":
            changed += quantize_table(graph, node, packed)
    for node in list(graph):
        if node.op_type == "MatMul":
            changed += quantize_product(graph, node, by_block, packed, bits)
    drop_unused(graph)
    return changed


def blocks(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N, K) as unsigned bytes (N, K / BLOCK, BLOCK), padded with 0, and their scales
    (N, K / BLOCK).

    A weight is about (byte - MIDDLE) * scale; a block's scale is its largest magnitude over 127.
    """
    rows, width = matrix.shape
    count = -(-width // BLOCK)
    parts = np.zeros((rows, count * BLOCK), np.float32)
    parts[:, :width] = matrix
    parts = parts.reshape(rows, count, BLOCK)
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


def halves(values: np.ndarray) -> np.ndarray:
    """Two numbers below 16 in each byte, along the last axis, the first one in the lower bits."""
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    return values[..., ::2] | values[..., 1::2] << 4


def columns(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(K, N) as signed bytes, and a scale for each column: its largest magnitude over 127."""
    scales = np.abs(matrix).max(0) / 127
    steps = matrix / np.where(scales, scales, 1)
    return np.rint(steps).astype(np.int8), scales.astype(np.float32)


def quantize_table(
    graph: ir.Graph, node: ir.Node, packed: dict[int, tuple[ir.Value, ir.Value]]
) -> bool:
    """Look up the rows of a table of bytes."""
    table = node.inputs[0]
    if table is None or not _quantizable(table) or _shape(table)[1] % BLOCK:
        return False
    data, scales = _packed(graph, table, array_of(table), packed)
    flat = ir.node("Reshape", inputs=[data, constant(graph, f"{table.name}_shape", _shape(table))])
    lookup = ir.node(
        "GatherBlockQuantized",
        domain=DOMAIN,
        inputs=[flat.outputs[0], node.inputs[1], scales],
        attributes={"bits": 8, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1},
        name=node.name,
    )
    graph.insert_before(node, [flat, lookup])
    return _replace(graph, node, lookup)


def quantize_product(
    graph: ir.Graph,
    node: ir.Node,
    by_block: bool,
    packed: dict[int, tuple[ir.Value, ir.Value]],
    bits: int,
) -> bool:
    """Multiply by bytes, or by halves of bytes."""
    source = node.inputs[1]
    assert source is not None
    transpose = source.producer()
    table = transpose.inputs[0] if transpose is not None and _turns(transpose) else source
    if table is None or not _quantizable(table):
        return False
    turned = table is not source
    matrix = array_of(table) if turned else array_of(table).T  # (N, K)
    add = bias_after(node)
    bias = constant_side(add) if add is not None else None
    attributes: dict[str, int] = {}
    if by_block or id(table) in packed:
        fine = bits == 4 and id(table) not in packed
        found = _halved(graph, table, matrix) if fine else None
        size = (
            {"bits": 8, "block_size": BLOCK} if found is None else {"bits": 4, "block_size": FINE}
        )
        data, scales, zeros = found or (*_packed(graph, table, matrix, packed), None)
        attributes = {"N": len(matrix), "K": matrix.shape[1], **size}
        attributes["accuracy_level"] = INT8_ACTIVATIONS
        kind, inputs = "MatMulNBits", [node.inputs[0], data, scales, zeros, None, bias]
    else:
        values, factors = columns(matrix.T)
        data = constant(graph, f"{table.name}_int8", np.ascontiguousarray(values))
        scales = constant(graph, f"{table.name}_scales", factors)
        kind, inputs = "DynamicQuantizeMatMul", [node.inputs[0], data, scales, None, bias]
    product = ir.node(kind, domain=DOMAIN, inputs=inputs, attributes=attributes, name=node.name)
    graph.insert_before(node, product)
    if add is not None:
        _replace(graph, add, product)
        graph.remove(node, safe=True)
        return True
    return _replace(graph, node, product)


def _packed(
    graph: ir.Graph,
    table: ir.Value,
    matrix: np.ndarray,
    packed: dict[int, tuple[ir.Value, ir.Value]],
) -> tuple[ir.Value, ir.Value]:
    """The bytes and scales of a matrix, made once where an embedding is the head, too."""
    if id(table) not in packed:
        data, scales = blocks(matrix)
        packed[id(table)] = (
            constant(graph, f"{table.name}_uint8", data),
            constant(graph, f"{table.name}_scales", scales),
        )
    return packed[id(table)]


def _halved(
    graph: ir.Graph, table: ir.Value, matrix: np.ndarray
) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """The halves of bytes, scales and zeros of a matrix, if it lies on grids."""
    found = grids(matrix)
    if found is None:
        return None
    steps, scales, zeros = found
    return (
        constant(graph, f"{table.name}_uint4", halves(steps)),
        constant(graph, f"{table.name}_scales", scales),
        constant(graph, f"{table.name}_zeros", halves(zeros)),
    )


def _quantizable(value: ir.Value) -> bool:
    shape = _shape(value) if value.is_initializer() else []
    return len(shape) == 2 and value.dtype == ir.DataType.FLOAT and shape[0] * shape[1] >= SMALL


def _shape(value: ir.Value) -> list[int]:
    assert value.const_value is not None
    return list(value.const_value.shape.numpy())


def _turns(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and list(node.attributes["perm"].as_ints()) == [1, 0]


def _replace(graph: ir.Graph, node: ir.Node, new: ir.Node) -> bool:
    old, made = node.outputs[0], new.outputs[0]
    made.shape, made.type = old.shape, old.type
    made.name, old.name = old.name, f"{old.name}_old"
    ir.convenience.replace_all_uses_with(old, made, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return True
