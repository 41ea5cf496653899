"""The Triton exporter: what it writes is held to Triton's own schema, and to what a server checks
when it loads a model (written anew here from its sources), and run with ONNX Runtime."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format

import toy_model
from cambrian.artifact import Artifact, Port, Signature, resolve_shape, terms
from cambrian.errors import BrokenFile, UsageError
from cambrian.exporting.golden import verify_artifact
from cambrian.model import Graph
from cambrian.registry import load_registry
from cambrian.testing import built, example
from cambrian_onnx import store, triton
from cambrian_onnx.triton import MAX_BATCH, TritonExporter, config, pbtxt

REGISTRY = load_registry()
TRITON, ENGINE = REGISTRY.exporters["triton"], REGISTRY.runtimes["onnxruntime"]
STATEFUL = {("gpt", "decoder"), ("t5", "decoder")}
ENGINE_TYPES = {  # what ONNX Runtime calls Triton's types
    "tensor(float)": "TYPE_FP32",
    "tensor(float16)": "TYPE_FP16",
    "tensor(int64)": "TYPE_INT64",
}


def schema() -> Any:
    """model_config.proto as Triton's client has it, compiled; the client itself is not imported."""
    client = importlib.util.find_spec("tritonclient")
    assert client is not None and client.submodule_search_locations is not None
    file = Path(client.submodule_search_locations[0], "grpc", "model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("triton_model_config", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCHEMA = schema()


def parsed(text: str) -> Any:
    """The text as a ModelConfig; an unknown field or a wrong type raises."""
    return text_format.Parse(text, SCHEMA.ModelConfig())


def read(folder: Path, graph: str) -> Any:
    return parsed((folder / "models" / graph / "config.pbtxt").read_text("utf-8"))


def opened(folder: Path, graph: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(folder / "models" / graph / "1" / "model.onnx")


def shown(values: Sequence[Any]) -> list[tuple[str, Any, list[int]]]:
    """Names, types and dims of a config's tensors, reshaped where it says so."""
    return [
        (
            value.name,
            SCHEMA.DataType.Name(value.data_type),
            [*(value.reshape.shape if value.HasField("reshape") else value.dims)],
        )
        for value in values
    ]


def found(values: Sequence[Any], batched: bool) -> list[tuple[str, Any, list[int]]]:
    """The same of what the engine sees in the file; a batched model's first dimension is free."""
    result = []
    for value in values:
        dims = [dim if isinstance(dim, int) else -1 for dim in value.shape]
        assert not batched or dims[0] == -1
        result.append((value.name, ENGINE_TYPES[value.type], dims[1:] if batched else dims))
    return result


def would_load(settings: Any, session: onnxruntime.InferenceSession) -> None:
    """What Triton's core and its backend demand of a config and its file."""
    batched = settings.max_batch_size > 0
    assert settings.backend == "onnxruntime"
    assert shown(settings.input) == found(session.get_inputs(), batched)
    assert shown(settings.output) == found(session.get_outputs(), batched)
    for value in (*settings.input, *settings.output):
        assert value.dims and all(dim == -1 or dim >= 1 for dim in value.dims)
        if value.HasField("reshape"):
            assert batched and list(value.dims) == [1] and not value.reshape.shape


def feeds(inputs: Sequence[Port], rows: int) -> dict[str, np.ndarray]:
    """Numbers for `rows` rows; whole ones are 0 or 1, which every input of whole ones knows."""
    random = np.random.default_rng(0)
    names = {name for port in inputs for dim in port.shape for _, name in terms(dim)}
    sizes = dict.fromkeys(names, 3) | {"batch": rows}
    result: dict[str, np.ndarray] = {}
    for port in inputs:
        shape = resolve_shape(port.shape, sizes)
        if port.dtype.startswith("float"):
            result[port.name] = random.standard_normal(shape).astype(port.dtype)
        else:
            result[port.name] = random.integers(0, 2, shape).astype(port.dtype)
        if port.name.endswith("mask"):
            result[port.name][:, 0] = 1
    return result


def rows_are_independent(
    session: onnxruntime.InferenceSession, inputs: Sequence[Port], tolerance: float = 1e-4
) -> None:
    """A full batch gives what its rows give alone: what dynamic batching takes for granted."""
    given = feeds(inputs, MAX_BATCH)
    together = session.run(None, given)
    alone = [
        session.run(None, {name: value[row : row + 1] for name, value in given.items()})
        for row in range(MAX_BATCH)
    ]
    for number, value in enumerate(together):
        parts = np.concatenate([outputs[number] for outputs in alone])
        assert value.shape == parts.shape and len(value) == MAX_BATCH
        np.testing.assert_allclose(value, parts, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_model.export(tmp_path_factory.mktemp("exported") / "toy", exporter=TRITON).path


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "toy"
    return toy_model.export(out, exporter=TRITON, precision="float16").path


def test_the_repository_holds_models_and_nothing_else(folder: Path) -> None:
    repository = folder / "models"
    names = {path.relative_to(repository).as_posix() for path in repository.rglob("*")}
    assert names == {
        *("decoder", "decoder/config.pbtxt", "decoder/1", "decoder/1/model.onnx"),
        *("generator", "generator/config.pbtxt", "generator/1", "generator/1/model.onnx"),
    }
    beside = {path.name for path in folder.iterdir()}
    assert beside == {
        *("models", "manifest.json", "golden.safetensors", "config.json", "toy.json", "README.md")
    }
    files = Artifact.open(folder).manifest.files
    assert {f"models/{name}" for name in names if "." in name} <= files.keys()


@pytest.mark.parametrize("graph", ["decoder", "generator"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_config_says_what_the_file_is(
    graph: str, precision: str, request: pytest.FixtureRequest
) -> None:
    place = request.getfixturevalue("folder" if precision == "float32" else "halves")
    settings = read(place, graph)
    would_load(settings, opened(place, graph))
    floats = {"float32": SCHEMA.TYPE_FP32, "float16": SCHEMA.TYPE_FP16}
    types = {value.data_type for value in (*settings.input, *settings.output)}
    assert types == {SCHEMA.TYPE_INT64, floats[precision]}


def test_a_model_is_served_under_the_name_of_its_folder(folder: Path) -> None:
    """A name in the config would have to be its folder's: exports could not be put together."""
    assert read(folder, "decoder").name == ""


def test_requests_are_put_together_where_there_is_no_state(folder: Path) -> None:
    decoder, generator = read(folder, "decoder"), read(folder, "generator")
    assert (decoder.max_batch_size, decoder.HasField("dynamic_batching")) == (0, False)
    assert (generator.max_batch_size, generator.HasField("dynamic_batching")) == (MAX_BATCH, True)
    assert 0 < generator.dynamic_batching.max_queue_delay_microseconds <= 1000
    assert list(decoder.input[0].dims) == [-1, -1]
    assert list(generator.output[0].dims) == [3, 4, 4]


def test_one_number_a_row_is_reshaped(folder: Path) -> None:
    label = read(folder, "generator").input[1]
    assert (label.name, list(label.dims), label.HasField("reshape")) == ("label", [1], True)


@pytest.mark.parametrize("place", ["folder", "halves"])
def test_a_full_batch_gives_what_its_rows_give(place: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(place)
    inputs = Artifact.open(path).manifest.graphs["generator"].signature.inputs
    rows_are_independent(opened(path, "generator"), inputs, 1e-4 if place == "folder" else 2e-2)


@pytest.mark.parametrize("graph", ["decoder", "generator"])
def test_servers_compute_as_the_proof_did(folder: Path, graph: str) -> None:
    settings = read(folder, graph)
    (cuda,) = settings.optimization.execution_accelerators.gpu_execution_accelerator
    assert (cuda.name, dict(cuda.parameters)) == ("cuda", {"use_tf32": "0"})
    assert settings.parameters["enable_mem_pattern"].string_value == "0"
    (group,) = settings.instance_group
    assert (group.kind, group.count) == (SCHEMA.ModelInstanceGroup.KIND_AUTO, 1)
    assert settings.version_policy.latest.num_versions == 1


@pytest.mark.parametrize("graph", ["decoder", "generator"])
def test_facts_stand_in_both_files(folder: Path, graph: str) -> None:
    file = folder / "models" / graph / "1" / "model.onnx"
    metadata = {item.key: item.value for item in onnx.load(file).metadata_props}
    noted = {key: item.string_value for key, item in read(folder, graph).parameters.items()}
    del noted["enable_mem_pattern"]
    assert noted == metadata
    assert noted["cambrian.weights_sha256"] == "0" * 64
    assert re.fullmatch("[0-9a-f]{64}", noted["cambrian.receipt_sha256"])


def test_the_folder_verifies_and_a_changed_config_is_noticed(folder: Path, tmp_path: Path) -> None:
    assert verify_artifact(folder, ENGINE, "cpu")["passed"]
    changed = shutil.copytree(folder, tmp_path / "changed")
    with (changed / "models" / "generator" / "config.pbtxt").open("a") as file:
        file.write("max_batch_size: 9\n")
    with pytest.raises(BrokenFile, match=r"generator/config\.pbtxt"):
        verify_artifact(changed, ENGINE, "cpu")


def test_large_weights_lie_beside_their_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "INLINE_LIMIT", 1000)
    model = toy_model.build()
    generator = model.graphs()[1]
    model.graphs = lambda: (generator,)
    TritonExporter().export(model, tmp_path, precision="float32")
    version = tmp_path / "models" / "generator" / "1"
    assert {path.name for path in version.iterdir()} == {"model.onnx", "model.onnx.data"}
    would_load(read(tmp_path, "generator"), opened(tmp_path, "generator"))


def test_texts_are_quoted() -> None:
    facts = {'a"b': "back\\slash", "line": "one\ntwo\ttab", "ü": "é — \U0001f600"}
    message = parsed(pbtxt(triton.parameters(facts)))
    assert {key: item.string_value for key, item in message.parameters.items()} == facts


def signature(*shapes: tuple[int | str, ...]) -> Signature:
    """One input and the outputs after it."""
    first, *rest = shapes
    outputs = tuple(Port(f"y{n}", "float32", shape) for n, shape in enumerate(rest))
    return Signature(inputs=(Port("x", "float32", first),), outputs=outputs)


@pytest.mark.parametrize(
    ("shapes", "fed", "batched"),
    [
        ([("batch", 4), ("batch", 2)], set(), True),
        ([("batch", "length"), ("batch", "past + length")], set(), True),
        ([("batch", 4), ("batch", 2)], {"x"}, False),
        ([("batch", 4), ("batch", 2)], {"z"}, True),
        ([("batch", 4), (2,)], set(), False),
        ([("batch", 4), ()], set(), False),
        ([(1, 4), (1, 2)], set(), False),
        ([("length", 4), ("length", 2)], set(), False),
        ([("2*batch", 4), ("2*batch", 2)], set(), False),
        ([("batch", 4), ("batch", "batch")], set(), False),
        ([("batch", 4), ("batch", "2*batch")], set(), False),
    ],
)
def test_batching_is_exactly_where_rows_are_apart(
    shapes: list[tuple[int | str, ...]], fed: set[str], batched: bool
) -> None:
    settings = parsed(pbtxt(config(signature(*shapes), fed)))
    assert settings.HasField("dynamic_batching") is batched
    assert settings.max_batch_size == (MAX_BATCH if batched else 0)
    ranks = [len(value.dims) for value in (*settings.input, *settings.output)]
    assert ranks == [max(1, len(shape) - batched) for shape in shapes]


def test_what_triton_cannot_hold_is_refused(tmp_path: Path) -> None:
    model = toy_model.build()
    assert TritonExporter().refuses(model, "float32") is None
    assert TritonExporter().refuses(model, "float16") is None
    with pytest.raises(UsageError, match="with 'triton': precision 'int4' is not one of"):
        toy_model.export(tmp_path / "toy", exporter=TRITON, precision="int4", tolerance=0.5)
    graph = model.graphs()[1]
    odd = Signature(inputs=graph.signature.inputs, outputs=(Port("z", "complex64", ("batch",)),))
    model.graphs = lambda: (Graph(name="odd", module=graph.module, signature=odd),)
    with pytest.raises(UsageError, match="no type for 'z', which holds complex64"):
        toy_model.export(tmp_path / "toy", model, exporter=TRITON)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted(REGISTRY.models))
def test_every_family_has_a_config(name: str) -> None:
    spec = REGISTRY.models[name]
    graphs = built(spec, example(spec)[0]).graphs()
    fed = {name for graph in graphs for name in graph.signature.state.values()}
    for graph in graphs:
        settings = parsed(pbtxt(config(graph.signature, fed)))
        state = (name, graph.name) in STATEFUL
        assert settings.HasField("dynamic_batching") is not state
        assert len(settings.input) == len(graph.signature.inputs)
        assert len(settings.output) == len(graph.signature.outputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(REGISTRY.models))
def test_every_familys_export_would_load(name: str, tmp_path: Path) -> None:
    spec = REGISTRY.models[name]
    model = built(spec, example(spec)[0]).eval()
    for graph, file in TritonExporter().export(model, tmp_path, precision="float32").items():
        settings, session = read(tmp_path, graph), opened(tmp_path, graph)
        would_load(settings, session)
        if settings.max_batch_size:
            rows_are_independent(session, file.signature.inputs)
