"""The ONNX exporters: torch.export to standard operators of opset 23, or, from the same trace, to
ONNX Runtime's own operators where those are faster.

The file says what the signature says (names of inputs, outputs and dimensions) and nothing of
where it was made: the same model gives the same bytes.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import textwrap
import warnings
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import ClassVar

import onnx
import onnx_ir as ir
import torch

import cambrian
from cambrian.artifact import GraphFile, Port, Signature, growing
from cambrian.errors import CambrianError, UsageError
from cambrian.exporting import Exporter
from cambrian.exporting.tracing import traceable
from cambrian.model import Graph, Model
from cambrian.runtime import Session
from cambrian_onnx.fit import fit
from cambrian_onnx.fuse import fuse
from cambrian_onnx.operators import OwnOperators, StandardOperators
from cambrian_onnx.quantize import quantize, relu_as_max
from cambrian_onnx.rewrite import absorb_past, share_tied
from cambrian_onnx.store import Store

OPSET = 23  # the first with Attention, which keeps the past inside the operator
BITS = {"int8": 8, "int4": 4}  # of the weights, in the precisions that quantize them
# Of these torch remembers, beyond an export, how to take them apart step by step, and in the next
# one, which should keep them whole, the length would no longer be free (torch 2.13).
RECURRENT = (torch.ops.aten.lstm.input, torch.ops.aten.gru.input)


class OnnxExporter(Exporter):
    """Writes model.onnx, or {graph}_model.onnx where a model has several graphs."""

    distributions: ClassVar[tuple[str, ...]] = (
        "onnx",
        "onnx-ir",
        "onnxscript",
        "onnxruntime",
        "onnxruntime-gpu",
    )
    precisions: ClassVar[tuple[str, ...]] = ("float32", "float16", "int8", "int4")
    rounding: ClassVar[tuple[str, ...]] = ("int8", "int4")
    fitted: ClassVar[tuple[str, ...]] = ("int4",)
    fused: ClassVar[bool] = False  # whether to use operators that only ONNX Runtime has

    def refuses(self, model: Model, precision: str) -> str | None:
        if precision not in self.precisions:
            return f"precision '{precision}' is not one of {', '.join(self.precisions)}"
        if not model.graphs():
            return "the model declares no graphs"
        if precision == "int4" and not any(growing(graph.signature) for graph in model.graphs()):
            return "int4 is for what is run token by token, and this model is not; use int8"
        return None

    def fit(self, model: Model, precision: str, drive: Callable[[Session], None]) -> Model:
        return fit(model, drive)

    def export(self, model: Model, folder: Path, *, precision: str) -> dict[str, GraphFile]:
        graphs = model.graphs()
        if precision == "float16":
            graphs = [halved(graph) for graph in half(model).graphs()]
        files: dict[str, GraphFile] = {}
        store = Store(folder)
        for graph in graphs:
            file = "model.onnx" if len(graphs) == 1 else f"{graph.name}_model.onnx"
            files[graph.name] = write_graph(
                graph, folder / file, fused=self.fused, bits=BITS.get(precision), store=store
            )
        return files

    def stamp(
        self, folder: Path, graphs: Mapping[str, GraphFile], facts: Mapping[str, str]
    ) -> None:
        """Append the facts as metadata: a protobuf message's fields add up over its length, so
        the graph is neither read nor written again."""
        entries = onnx.ModelProto(
            metadata_props=[
                onnx.StringStringEntryProto(key=key, value=value) for key, value in facts.items()
            ]
        )
        for graph in graphs.values():
            with (folder / graph.file).open("ab") as file:
                file.write(entries.SerializeToString(deterministic=True))


class OrtExporter(OnnxExporter):
    """Writes the same files for ONNX Runtime alone: with its own operators, the past in buffers
    that are written in place, and the head computed for the last token only."""

    fused: ClassVar[bool] = True


def half(model: Model) -> Model:
    """A copy in float16, but for the modules that the model keeps in float32."""
    result = copy.deepcopy(model)
    for name, module in result.named_modules():
        if any(fnmatchcase(name, pattern) for pattern in model.keep_in_float32):
            continue  # never rounded: it may hold what float16 has no number for
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.data = tensor.data.half()
    return result


def halved(graph: Graph) -> Graph:
    """The graph with float16 wherever its signature says float32; the module is half already."""

    def reduced(ports: tuple[Port, ...]) -> tuple[Port, ...]:
        return tuple(
            replace(port, dtype="float16") if port.dtype == "float32" else port for port in ports
        )

    old = graph.signature
    signature = replace(old, inputs=reduced(old.inputs), outputs=reduced(old.outputs))
    return replace(graph, signature=signature)


def write_graph(
    graph: Graph,
    file: Path,
    *,
    fused: bool = False,
    bits: int | None = None,
    store: Store | None = None,
) -> GraphFile:
    """Export one graph; CambrianError with torch's reason where it cannot be traced.

    `fused`: with ONNX Runtime's own operators. `bits`: of the weights, if they are quantized.
    `store`: that of the folder, where graphs are to share weights.
    """
    for layer in graph.module.modules():
        if isinstance(layer, torch.nn.RNNBase) and layer.weight_hh_l0.dtype == torch.float16:
            raise UsageError(  # on a CPU it ends the process
                f"Graph '{graph.name}' holds a layer of {layer.mode}, which ONNX Runtime cannot "
                "compute in float16; export it in float32."
            )
    with _quiet(), torch.no_grad():
        model = trace(graph)
        body = model.graph
        for name in list(body.initializers):
            body.initializers[name].name = name.removeprefix("module.")
        absorb_past(body)
        share_tied(body, dict(graph.module.named_parameters()).keys())
        signature, length = graph.signature, ""
        if fused:
            found = fuse(body, grown(graph.signature), graph.last)
            signature, length = narrowed(graph.signature, found.last), found.length
        operators = OwnOperators() if fused else StandardOperators()
        by_block = bool(growing(graph.signature))
        if bits and not quantize(body, operators, by_block, bits):
            raise UsageError(
                f"Graph '{graph.name}' multiplies by no matrix that is worth quantizing; export it "
                "in float16."
            )
        if bits and by_block and not fused:
            relu_as_max(body)
        tidy(model, graph.name, signature, length)
        (store or Store(file.parent)).write(model, file)
    if not fused:
        onnx.checker.check_model(file)
    return GraphFile(file=file.name, signature=signature, length=length)


def narrowed(signature: Signature, last: Mapping[str, int]) -> Signature:
    """The signature of what computes only the last entry of some outputs, along these axes."""
    outputs: list[Port] = []
    for port in signature.outputs:
        axis = last.get(port.name)
        shape = tuple(1 if place == axis else dim for place, dim in enumerate(port.shape))
        outputs.append(replace(port, shape=shape))
    return replace(signature, outputs=tuple(outputs))


def grown(signature: Signature) -> dict[str, str]:
    """The inputs that hold what a call makes longer, and the outputs that hold it longer."""
    return {name: out for out, name in signature.state.items() if name in growing(signature)}


def trace(graph: Graph) -> ir.Model:
    """The graph as torch exports it."""
    module, inputs, dynamic_shapes = traceable(graph)
    for recurrent in RECURRENT:
        recurrent._dispatch_cache.clear()  # pyright: ignore[reportPrivateUsage]
    try:
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=[port.name for port in graph.signature.inputs],
            output_names=[port.name for port in graph.signature.outputs],
            dynamic_shapes=dynamic_shapes,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = textwrap.shorten(str(cause) or type(cause).__name__, 300)
        raise CambrianError(
            f"Graph '{graph.name}' cannot be exported to ONNX: {reason} "
            "Its module must be traceable with every named dimension free."
        ) from error
    assert program is not None
    return program.model


def tidy(model: ir.Model, name: str, signature: Signature, length: str) -> None:
    """Leave in the file what the signature says, and nothing of the place it was made in.

    `length`: as in GraphFile.
    """
    body = model.graph
    ports = [*signature.inputs, *([Port(length, "int32", (1,))] if length else ())]
    axes = {name: axis for name, (axis, _) in growing(signature).items()} if length else {}
    axes |= {output: axes[fed] for output, fed in signature.state.items() if fed in axes}
    for value, port in zip(
        [*body.inputs, *body.outputs], [*ports, *signature.outputs], strict=True
    ):
        shape = list(port.shape)
        if port.name in axes:
            shape[axes[port.name]] = "capacity"
        value.shape = ir.Shape(shape)
    outer = {id(value) for value in [*body.inputs, *body.outputs]}
    for node in ir.traversal.RecursiveGraphIterator(body):
        if node.op_type == "If":
            raise CambrianError(
                f"Graph '{name}' branches on data, which is slow in every engine; "
                "write both branches as one computation."
            )
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
            if id(value) not in outer:
                value.shape = value.type = None  # engines infer them
    for value in [*body.inputs, *body.initializers.values()]:
        value.metadata_props.clear()
    body.name = name
    body.metadata_props.clear()
    model.metadata_props.clear()
    model.doc_string = body.doc_string = None
    model.producer_name, model.producer_version = "cambrian", cambrian.__version__


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Mute torch's exporter, whose warnings concern its own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
