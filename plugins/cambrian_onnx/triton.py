"""The Triton exporter: a model repository that Triton Inference Server opens as it is.

    models/GRAPH/config.pbtxt   models/GRAPH/1/model.onnx   (and model.onnx.data)

Triton takes every folder of a repository for a model, hidden ones too, and does not start where one
of them is none; so the repository is a folder of its own, apart from the rest of an export.
Sources: model_config.proto of triton-inference-server/common, and what its core and its
onnxruntime_backend check on loading.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, cast

from cambrian.artifact import GraphFile, Port, Signature, terms
from cambrian.model import Model
from cambrian_onnx.exporter import OnnxExporter, half, halved, write_graph

REPOSITORY, VERSION, CONFIG = "models", "1", "config.pbtxt"
BATCH = "batch"  # what signatures call the dimension along which rows are independent
# Rows computed at once, of one request or of several. Memory grows with it: the logits of 8 texts
# of 512 tokens over a vocabulary of 30,000 are half a gigabyte.
MAX_BATCH = 8
QUEUE_DELAY = 100  # microseconds that a request waits for others: less than most models take
TYPES: Mapping[str, str] = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
}

Message = Mapping[str, Any]


class Word(str):
    """A name of an enumeration, which stands without quotes."""

    __slots__ = ()


class TritonExporter(OnnxExporter):
    """Writes each graph, in standard operators, as one model of the repository."""

    # Triton puts requests together, and in int8 the rows of a batch can touch each other.
    precisions: ClassVar[tuple[str, ...]] = ("float32", "float16")
    rounding: ClassVar[tuple[str, ...]] = ()
    fitted: ClassVar[tuple[str, ...]] = ()

    def refuses(self, model: Model, precision: str) -> str | None:
        if reason := super().refuses(model, precision):
            return reason
        for graph in model.graphs():
            for port in (*graph.signature.inputs, *graph.signature.outputs):
                if port.dtype not in TYPES:
                    return f"Triton has no type for '{port.name}', which holds {port.dtype}"
        return None

    def export(self, model: Model, folder: Path, *, precision: str) -> dict[str, GraphFile]:
        graphs = model.graphs()
        if precision == "float16":
            graphs = [halved(graph) for graph in half(model).graphs()]
        fed = {name for graph in graphs for name in graph.signature.state.values()}
        files: dict[str, GraphFile] = {}
        for graph in graphs:
            name = f"{REPOSITORY}/{graph.name}/{VERSION}/model.onnx"
            (folder / name).parent.mkdir(parents=True)
            file = write_graph(graph, folder / name)
            files[graph.name] = replace(file, file=name)
            config_of(folder, name).write_text(pbtxt(config(file.signature, fed)), "utf-8")
        return files

    def stamp(
        self, folder: Path, graphs: Mapping[str, GraphFile], facts: Mapping[str, str]
    ) -> None:
        """Append the facts to each graph's file and, as parameters, to its config: the text of a
        protobuf message, too, adds up over its length."""
        super().stamp(folder, graphs, facts)
        for graph in graphs.values():
            with config_of(folder, graph.file).open("a", encoding="utf-8") as file:
                file.write(pbtxt(parameters(facts)))


def config_of(folder: Path, file: str) -> Path:
    """Where the config of a graph's file is."""
    return folder / PurePosixPath(file).parents[1] / CONFIG


def config(signature: Signature, fed: Set[str]) -> Message:
    """What Triton is to know of a graph; `fed` are the inputs, of any graph, that state feeds.

    It gives no name, since Triton then takes the folder's: copied or mounted under another name,
    the model is served under that one.
    """
    batched = batches(signature, fed)
    waiting = {"dynamic_batching": {"max_queue_delay_microseconds": QUEUE_DELAY}}
    # What the proof ran with: TF32 would round float32 to 10 bits, and a memory pattern kept for
    # every shape seen makes memory grow, for each length is a new one.
    exact = {"name": "cuda", "parameters": [{"key": "use_tf32", "value": "0"}]}
    return {
        "backend": "onnxruntime",
        "max_batch_size": MAX_BATCH if batched else 0,
        "input": [tensor(port, batched) for port in signature.inputs],
        "output": [tensor(port, batched) for port in signature.outputs],
        **(waiting if batched else {}),
        "instance_group": [{"count": 1, "kind": Word("KIND_AUTO")}],
        "version_policy": {"latest": {"num_versions": 1}},
        "optimization": {"execution_accelerators": {"gpu_execution_accelerator": [exact]}},
        **parameters({"enable_mem_pattern": "0"}),
    }


def batches(signature: Signature, fed: Set[str]) -> bool:
    """Whether Triton may put the rows of several requests together.

    It may where the batch is the first dimension of all that goes in and out, and nowhere else a
    dimension; not where state goes in, which would be copied together and apart at every token.
    """
    ports = (*signature.inputs, *signature.outputs)
    inner = {name for port in ports for dim in port.shape[1:] for _, name in terms(dim)}
    return (
        all(port.shape[:1] == (BATCH,) for port in ports)
        and BATCH not in inner
        and fed.isdisjoint(port.name for port in signature.inputs)
    )


def tensor(port: Port, batched: bool) -> Message:
    """An input or an output: of a batched one Triton adds the first dimension itself.

    A tensor without dimensions is not to be had: one number is given as 1, reshaped to none.
    """
    shape = port.shape[1:] if batched else port.shape
    dims = [dim if isinstance(dim, int) else -1 for dim in shape]
    found = {"name": port.name, "data_type": Word(TYPES[port.dtype]), "dims": dims or [1]}
    return found | {"reshape": {}} if batched and not dims else found


def parameters(facts: Mapping[str, str]) -> Message:
    """Facts as what a config holds of things that Triton has no field for."""
    entries = [{"key": key, "value": {"string_value": value}} for key, value in facts.items()]
    return {"parameters": entries}


def pbtxt(message: Message) -> str:
    """A message in protobuf's text format, its fields in the order given."""
    return "".join(f"{line}\n" for line in _lines(message))


def _lines(message: Message) -> Iterator[str]:
    for key, value in message.items():
        blocks = [item for item in _several(value) if isinstance(item, Mapping)]
        for block in blocks:
            yield f"{key} {{"
            yield from (f"  {line}" for line in _lines(block))
            yield "}"
        if not blocks:  # numbers, texts and lists of them are written as in JSON
            plain = value if isinstance(value, Word) else json.dumps(value, ensure_ascii=False)
            yield f"{key}: {plain}"


def _several(value: Any) -> Sequence[Any]:
    return cast(Sequence[Any], value) if isinstance(value, list) else [value]
