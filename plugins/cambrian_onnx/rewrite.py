"""Changes to a traced graph, each with the reason why an engine is better off with it."""

from __future__ import annotations

from collections.abc import Set

import numpy as np
import onnx_ir as ir


def absorb_past(graph: ir.Graph) -> int:
    """Move the cache's growth into the operator: Attention(q, Concat(past, new), ...) becomes
    Attention(q, new, ..., past), whose second and third outputs are the grown cache.

    Attention-23 defines its inputs 4 and 5 and outputs 1 and 2 as just that concatenation, so an
    engine may write the new rows in place. Returns how many were changed.
    """
    changed = 0
    for node in list(graph):
        if node.op_type != "Attention" or len(node.inputs) < 3 or any(node.inputs[4:]):
            continue
        query, *grown, mask = [*node.inputs, None][:4]
        pieces = [_past_and_new(value) for value in grown]
        if mask is None or None in pieces or _causal(node):  # causal offsets differ with a past
            continue
        (past_key, key), (past_value, value) = pieces  # pyright: ignore[reportGeneralTypeIssues]
        new = ir.node(
            "Attention",
            inputs=[query, key, value, mask, past_key, past_value],
            attributes=dict(node.attributes),
            num_outputs=3,
            name=node.name,
        )
        graph.insert_before(node, new)
        concats = [value.producer() for value in grown if value is not None]
        for old, fresh in zip([node.outputs[0], *grown], new.outputs, strict=True):
            assert old is not None
            fresh.name, old.name = old.name, f"{old.name}_old"
            fresh.shape, fresh.type = old.shape, old.type
            ir.convenience.replace_all_uses_with(old, fresh, replace_graph_outputs=True)
        graph.remove([node, *(concat for concat in concats if concat is not None)], safe=True)
        changed += 1
    return changed


def _causal(node: ir.Node) -> bool:
    return "is_causal" in node.attributes and bool(node.attributes["is_causal"].as_int())


def _past_and_new(value: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """The two parts of a cache (B, H, T, D) that an input of the graph starts."""
    concat = value.producer() if value is not None else None
    if concat is None or concat.op_type != "Concat" or len(concat.inputs) != 2:
        return None
    past, new = concat.inputs
    axis = concat.attributes["axis"].as_int()
    if past is None or new is None or not past.is_graph_input() or axis not in (2, -2):
        return None
    return past, new


def share_tied(graph: ir.Graph, parameters: Set[str]) -> int:
    """Store a tied matrix once: where folding left a parameter beside its own transpose, compute
    the transpose (which engines do once, at load). Returns how many copies are gone."""
    matrices = {
        name: value for name, value in graph.initializers.items() if len(value.shape or ()) == 2
    }
    changed = 0
    for name, copy in matrices.items():
        twin = None if name in parameters else _twin(copy, matrices, parameters)
        if twin is None:
            continue
        transpose = ir.node("Transpose", inputs=[twin], attributes={"perm": [1, 0]}, name=name)
        graph.insert_before(graph[0], transpose)
        ir.convenience.replace_all_uses_with(copy, transpose.outputs[0])
        del graph.initializers[name]
        transpose.outputs[0].name = name
        changed += 1
    return changed


def _twin(copy: ir.Value, matrices: dict[str, ir.Value], parameters: Set[str]) -> ir.Value | None:
    if copy.const_value is None:
        return None
    array = copy.const_value.numpy().T
    for name, value in matrices.items():
        tensor = value.const_value
        if name not in parameters or tensor is None or tensor.dtype != copy.dtype:
            continue
        if tuple(tensor.shape) == array.shape and np.array_equal(tensor.numpy(), array):
            return value
    return None
