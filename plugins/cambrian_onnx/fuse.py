"""What ONNX Runtime computes faster if it is said otherwise, mostly by its own operators (domain
com.microsoft).

Each function changes a traced graph of standard operators, whose values still have their shapes,
and leaves alone what it does not recognise. Sums that are normalised are left as they are: on a
CPU, its operator for both at once was up to a tenth slower in long calls.

Shapes: B batch, S sequence, H heads, D head size. Source: onnxruntime, docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

DOMAIN = "com.microsoft"
LENGTH = "past_length"  # the input that tells how much of the state is filled


@dataclass(frozen=True)
class Fused:
    """What a fused graph does otherwise than its signature says.

    length: the name of the input that tells the past's length, if the past is written in place.
    last: the outputs of which only the last entry is computed, by the axis.
    """

    length: str
    last: Mapping[str, int]


def fuse(graph: ir.Graph, grown: Mapping[str, str], last: Mapping[str, int]) -> Fused:
    """Make all changes; `grown` maps the inputs that hold the past to the outputs that hold it
    longer, `last` outputs to the axis of which only the last entry is wanted.
    """
    last = {name: axis for name, axis in last.items() if keep_last(graph, name, axis)}
    merge_products(graph)
    length = share_buffers(graph, grown)
    for node in list(graph):
        if node.op_type == "Attention":
            multi_head(graph, node)
    for node in list(graph):
        if node.op_type == "Gelu":
            biased_gelu(graph, node)
        elif node.op_type == "GroupNormalization":
            group_norm(graph, node)
    graph.opset_imports[DOMAIN] = 1
    drop_unused(graph)
    return Fused(length, last)


def drop_unused(graph: ir.Graph) -> None:
    """Remove the nodes that nothing reads any more."""
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def keep_last(graph: ir.Graph, name: str, axis: int) -> bool:
    """Compute an output only for the last entry along an axis: of all that a product with a
    constant matrix (the head over the vocabulary) is given, it gets only that."""
    output = next(value for value in graph.outputs if value.name == name)
    node = output.producer() if not output.uses() else None
    while node is not None and node.op_type in ("Add", "Mul", "Cast"):
        varying = [v for v in node.inputs if v is not None and not v.is_initializer()]
        only = len(varying) == 1 and _only_use(varying[0]) is node  # nobody else wants the rest
        node = varying[0].producer() if only else None
    if node is None or node.op_type != "MatMul" or _rank(node.inputs[0]) <= axis:
        return False
    hidden = node.inputs[0]
    assert hidden is not None
    numbers = {"start": -1, "end": np.iinfo(np.int64).max, "axis": axis}
    bounds = [constant(graph, f"{name}_{key}", [number]) for key, number in numbers.items()]
    cut = ir.node("Slice", inputs=[hidden, *bounds], name=f"{name}_last")
    _typed(cut.outputs[0], hidden, [*_dims(hidden)[:axis], 1, *_dims(hidden)[axis + 1 :]])
    graph.insert_before(node, cut)
    node.replace_input_with(0, cut.outputs[0])
    output.shape = ir.Shape([*_dims(output)[:axis], 1, *_dims(output)[axis + 1 :]])
    return True


def merge_products(graph: ir.Graph) -> int:
    """One product instead of several of the same activation (query, key and value), which is then
    read, and in int8 quantized, once. Returns how many products are gone."""
    groups: dict[int, list[ir.Node]] = {}
    for node in graph:
        if node.op_type == "MatMul" and _rank(node.inputs[0]) == 3 and _matrix(node) is not None:
            groups.setdefault(id(node.inputs[0]), []).append(node)
    changed = 0
    for nodes in groups.values():
        biases = [bias_after(node) for node in nodes]
        if len(nodes) > 1 and all((bias is None) == (biases[0] is None) for bias in biases):
            _merge(graph, nodes, [bias for bias in biases if bias is not None])
            changed += len(nodes) - 1
    return changed


def _merge(graph: ir.Graph, nodes: list[ir.Node], adds: list[ir.Node]) -> None:
    first, source = nodes[0], nodes[0].inputs[0]
    matrices = [array_of(node.inputs[1]) for node in nodes]
    assert source is not None and first.name is not None
    weight = constant(graph, f"{first.name}_weights", np.concatenate(matrices, axis=1))
    product = ir.node("MatMul", inputs=[source, weight], name=f"{first.name}_merged")
    made = [product]
    if adds:
        values = np.concatenate([array_of(constant_side(add)) for add in adds])
        bias = constant(graph, f"{first.name}_biases", values)
        made.append(ir.node("Add", inputs=[product.outputs[0], bias], name=f"{first.name}_bias"))
    width = sum(matrix.shape[1] for matrix in matrices)
    for node in made:
        _typed(node.outputs[0], source, [*_dims(source)[:-1], width])
    sizes = constant(graph, f"{first.name}_sizes", [matrix.shape[1] for matrix in matrices])
    split = ir.node(
        "Split",
        inputs=[made[-1].outputs[0], sizes],
        attributes={"axis": -1},
        num_outputs=len(nodes),
        name=f"{first.name}_split",
    )
    graph.insert_before(first, [*made, split])
    for old, part in zip(adds or nodes, split.outputs, strict=True):
        _replace(old.outputs[0], part)
    graph.remove([*adds, *nodes], safe=True)


def share_buffers(graph: ir.Graph, grown: Mapping[str, str]) -> str:
    """Have the past lie in buffers that the graph writes in place: what it needs to know of them
    besides is how much is filled, an input of its own. Returns that input's name.

    Nothing is changed, and "" returned, unless every past is read by attention and by nothing
    else (its length apart), with a mask that is added.
    """
    inputs = {value.name: value for value in graph.inputs}
    readers: list[ir.Node] = []
    shapes: list[ir.Node] = []
    for name in grown:
        for node, place in inputs[name].uses():
            if node.op_type == "Attention" and place in (4, 5) and _plain(node):
                readers.append(node)
            elif node.op_type == "Shape" and _reads(node) <= {2}:
                shapes.append(node)
            elif node.op_type != "Shape" or 2 in _reads(node):
                return ""
    if not readers:
        return ""
    length = ir.val(LENGTH, ir.DataType.INT32, (1,))
    graph.inputs.append(length)
    wide = ir.node("Cast", inputs=[length], attributes={"to": ir.DataType.INT64}, name=LENGTH)
    graph.insert_before(graph[0], wide)
    for node in shapes:
        ir.convenience.replace_all_uses_with(node.outputs[0], wide.outputs[0])
    graph.remove(shapes, safe=True)
    for node in dict.fromkeys(readers):
        multi_head(graph, node, length)
    return LENGTH


def multi_head(graph: ir.Graph, node: ir.Node, length: ir.Value | None = None) -> bool:
    """Attention over (B, S, H * D), as products give it and want it, instead of (B, H, S, D): no
    transpositions. With a past in buffers, or keys that a state holds, by MultiHeadAttention."""
    query, key, value, mask, past_key, past_value = [*node.inputs, *[None] * 6][:6]
    if not _plain(node) or (past_key is not None) != (length is not None):
        return False
    assert query is not None and key is not None and value is not None
    if mask is not None and mask.dtype == ir.DataType.BOOL:
        mask = _added(graph, node, mask, query)
    held = length is None and key.is_graph_input()
    if not held:
        key, value = _merged(graph, node, key), _merged(graph, node, value)
    query, heads = _merged(graph, node, query), _dims(query)[1]
    if length is None and not held:
        inputs, counts = [query, key, value, mask], ("q_num_heads", "kv_num_heads")
        kind, domain = "Attention", ""
    else:
        inputs, counts = [query, key, value, None, None, mask], ("num_heads",)
        kind, domain = "MultiHeadAttention", DOMAIN
    attention = ir.node(
        kind,
        domain=domain,
        inputs=inputs if length is None else [*inputs, past_key, past_value, length],
        attributes={**dict.fromkeys(counts, heads), **_kept(node, "scale")},
        num_outputs=1 if length is None else len(node.outputs),
        name=node.name,
    )
    graph.insert_before(node, attention)
    _replace_split(graph, node, attention.outputs[0])
    for old, new in zip(node.outputs[1:], attention.outputs[1:], strict=False):
        _replace(old, new)
    graph.remove(node, safe=True)
    return True


def _plain(node: ir.Node) -> bool:
    """Whether MultiHeadAttention computes the same: nothing but a mask is special about it."""
    query, key, _, mask = [*node.inputs, None][:4]
    special = ("is_causal", "softcap", "q_num_heads")
    odd = any(name in node.attributes and node.attributes[name].value for name in special)
    return (
        not odd
        and query is not None
        and _rank(query) == 4
        and isinstance(_dims(query)[1], int)
        and _dims(key)[1:2] == _dims(query)[1:2]  # as many heads
        and (mask is None or (mask.dtype in (query.dtype, ir.DataType.BOOL) and _rank(mask) == 4))
    )


def _added(graph: ir.Graph, before: ir.Node, mask: ir.Value, like: ir.Value) -> ir.Value:
    """A mask that says what is seen, as one that is added to the scores."""
    assert like.dtype is not None
    kind = like.dtype.numpy()
    # Halved, so that adding a score cannot overflow; not minus infinity, which could give NaN.
    numbers = [np.array(value, kind) for value in (0, np.finfo(kind).min / 2)]
    seen, hidden = (constant(graph, f"{mask.name}_{n}", x) for n, x in enumerate(numbers))
    chosen = ir.node("Where", inputs=[mask, seen, hidden])
    graph.insert_before(before, chosen)
    return chosen.outputs[0]


def _merged(graph: ir.Graph, before: ir.Node, value: ir.Value) -> ir.Value:
    """(B, H, S, D) as (B, S, H * D): what it was made of, or else made of it."""
    transpose = _producer(value)
    if transpose is not None and _swaps(transpose):
        reshape = _producer(transpose.inputs[0])
        source = reshape.inputs[0] if reshape is not None else None
        if reshape is not None and reshape.op_type == "Reshape" and _rank(source) == 3:
            assert source is not None
            return source
    swap = ir.node("Transpose", inputs=[value], attributes={"perm": [0, 2, 1, 3]})
    shape = constant(graph, f"{value.name}_merged_shape", [0, 0, -1])
    merge = ir.node("Reshape", inputs=[swap.outputs[0], shape])
    graph.insert_before(before, [swap, merge])
    return merge.outputs[0]


def _replace_split(graph: ir.Graph, node: ir.Node, merged: ir.Value) -> None:
    """Put (B, S, H * D) in the place of a node's (B, H, S, D), or of what that is merged to."""
    old = node.outputs[0]
    transpose = _only_use(old)
    if transpose is not None and _swaps(transpose):
        reshape = _only_use(transpose.outputs[0])
        if reshape is not None and reshape.op_type == "Reshape" and _rank(reshape.outputs[0]) == 3:
            _replace(reshape.outputs[0], merged)
            graph.remove([reshape, transpose], safe=True)
            return
    heads = _dims(old)[1]
    assert isinstance(heads, int)
    shape = constant(graph, f"{old.name}_split_shape", [0, 0, heads, -1])
    split = ir.node("Reshape", inputs=[merged, shape])
    swap = ir.node("Transpose", inputs=[split.outputs[0]], attributes={"perm": [0, 2, 1, 3]})
    graph.insert_before(node, [split, swap])
    _replace(old, swap.outputs[0])


def biased_gelu(graph: ir.Graph, node: ir.Node) -> bool:
    """Gelu by tanh, and the bias before it, by one operator. (The engine itself does so for the
    exact Gelu.)"""
    attribute = node.attributes.get("approximate")
    add = _producer(node.inputs[0])
    if attribute is None or attribute.as_string() != "tanh" or add is None or add.op_type != "Add":
        return False
    bias = constant_side(add)
    if bias is None or _rank(bias) != 1 or len(add.outputs[0].uses()) > 1:
        return False
    x = add.inputs[0] if add.inputs[1] is bias else add.inputs[1]
    fused = ir.node("FastGelu", domain=DOMAIN, inputs=[x, bias], name=node.name)
    graph.insert_before(node, fused)
    _replace(node.outputs[0], fused.outputs[0])
    graph.remove([node, add], safe=True)
    return True


def group_norm(graph: ir.Graph, node: ir.Node) -> bool:
    """A norm of groups of channels, in float32, as one of whole channels (B, groups, rest) and what
    each channel is scaled and moved by. The engine has a kernel for that; GroupNormalization it
    spells out as some fifteen operators, casts among them."""
    x, *sides = node.inputs
    given = [array_of(side) for side in sides if side is not None and side.is_initializer()]
    if x is None or x.dtype != ir.DataType.FLOAT or len(given) != 2 or _rank(x) < 3:
        return False
    groups, name = node.attributes["num_groups"].as_int(), node.name
    shape = constant(graph, f"{name}_groups", [0, groups, -1])
    one, none = (constant(graph, f"{name}_{n}", np.full(groups, n, np.float32)) for n in (1, 0))
    axes = (-1, *[1] * (_rank(x) - 2))
    scale, bias = (
        constant(graph, f"{name}_{kind}", side.reshape(axes))
        for kind, side in zip(("scale", "bias"), given, strict=True)
    )
    split = ir.node("Reshape", inputs=[x, shape])
    norm = ir.node(
        "InstanceNormalization",
        inputs=[split.outputs[0], one, none],
        attributes=_kept(node, "epsilon"),
        name=name,
    )
    size = ir.node("Shape", inputs=[x])
    whole = ir.node("Reshape", inputs=[norm.outputs[0], size.outputs[0]])
    scaled = ir.node("Mul", inputs=[whole.outputs[0], scale])
    moved = ir.node("Add", inputs=[scaled.outputs[0], bias])
    graph.insert_before(node, [split, norm, size, whole, scaled, moved])
    _replace(node.outputs[0], moved.outputs[0])
    graph.remove(node, safe=True)
    return True


def constant(graph: ir.Graph, name: str, value: Iterable[int] | np.ndarray) -> ir.Value:
    """A new initializer of the graph."""
    array = value if isinstance(value, np.ndarray) else np.array(list(value), np.int64)
    made = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(made)
    return made


def _replace(old: ir.Value, new: ir.Value) -> None:
    """Have all that reads a value read another, which takes its name: it may be an output."""
    _typed(new, old, _dims(old))
    new.name, old.name = old.name, f"{old.name}_old"
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def _typed(value: ir.Value, like: ir.Value, dims: Iterable[int | str | None]) -> None:
    value.type, value.shape = like.type, ir.Shape(dims)


def _producer(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None else None


def _only_use(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _dims(value: ir.Value | None) -> list[int | str | None]:
    shape = value.shape if value is not None else None
    return [d if isinstance(d, int) else d.value for d in shape] if shape is not None else []


def _rank(value: ir.Value | None) -> int:
    return len(_dims(value))


def array_of(value: ir.Value | None) -> np.ndarray:
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


def _matrix(node: ir.Node) -> ir.Value | None:
    """The constant matrix that a product multiplies by."""
    value = node.inputs[1]
    return value if value is not None and value.is_initializer() and _rank(value) == 2 else None


def bias_after(node: ir.Node) -> ir.Node | None:
    """The addition of a constant vector to a product that nothing else reads."""
    add = _only_use(node.outputs[0])
    bias = constant_side(add) if add is not None and add.op_type == "Add" else None
    return add if bias is not None and _rank(bias) == 1 else None


def constant_side(add: ir.Node) -> ir.Value | None:
    return next((v for v in add.inputs if v is not None and v.is_initializer()), None)


def _swaps(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and list(node.attributes["perm"].as_ints()) == [0, 2, 1, 3]


def _reads(shape: ir.Node) -> set[int]:
    """The axes whose size a Shape gives."""
    rank = _rank(shape.inputs[0])
    start, end = (shape.attributes.get(name) for name in ("start", "end"))
    axes = range(rank)[start.as_int() if start else 0 : end.as_int() if end else rank]
    return set(axes)


def _kept(node: ir.Node, name: str) -> dict[str, ir.Attr]:
    return {name: node.attributes[name]} if name in node.attributes else {}
