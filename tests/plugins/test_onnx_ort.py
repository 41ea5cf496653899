"""The profile for ONNX Runtime alone: its operators, its buffers, and weights in 8 bits."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from cambrian import api, load_registry
from cambrian.artifact import GraphFile
from cambrian.checkpoint import save_description, save_weights
from cambrian.config import parse_assignment
from cambrian.errors import Rejected, UsageError
from cambrian.exporting.quality import limits, worse
from cambrian.model import Model
from cambrian.specs import ExporterSpec, Ref
from cambrian.testing import built, prepared
from cambrian_onnx import register_exporters
from cambrian_onnx.buffers import ROOM, Buffers, reserve, take
from cambrian_onnx.exporter import OrtExporter
from cambrian_onnx.operators import MIDDLE
from cambrian_onnx.quantize import BLOCK, LONG, blocks, columns

ORT = next(spec for spec in register_exporters() if spec.name == "onnx-ort")


def checkpoint(name: str, folder: Path, **changes: object) -> Path:
    """An untrained example of an architecture."""
    spec = load_registry().models[name]
    data, _ = prepared(spec)
    config = spec.config(**{**vars(data.config), **changes})
    save_description(folder, spec, config, data.processor, "0")
    save_weights(folder, spec, config, built(spec, config))
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """GPT with room for many tokens, in both profiles."""
    root = tmp_path_factory.mktemp("gpt")
    model = checkpoint("gpt", root / "model", n_positions=2 * ROOM + 40)
    found = {"model": model}
    for name in ("onnx", "onnx-ort"):
        found[name] = api.export(model, root / name, format=name).path
    return found


def operators(file: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(file, load_external_data=False).graph.node)


@pytest.mark.parametrize(
    ("name", "graph", "in_place", "whole"),
    [("gpt", "model", 1, 0), ("bert", "model", 0, 1), ("t5", "encoder_model", 0, 1),
     ("t5", "decoder_model", 2, 0)],
)  # fmt: skip
def test_every_block_is_fused(
    name: str, graph: str, in_place: int, whole: int, tmp_path: Path
) -> None:
    spec = load_registry().models[name]
    data, _ = prepared(spec)
    OrtExporter().export(built(spec, data.config), tmp_path, precision="float32")
    found = operators(tmp_path / f"{graph}.onnx")
    layers = {"gpt": "n_layer", "bert": "num_hidden_layers", "t5": "num_layers"}[name]
    count = getattr(data.config, layers)
    assert found["MultiHeadAttention"] == in_place * count
    assert found["Attention"] == whole * count
    assert found["FastGelu"] == count * (name == "gpt")
    nodes = onnx.load(tmp_path / f"{graph}.onnx", load_external_data=False).graph.node
    for node in nodes:  # no head is a dimension of its own
        if node.op_type == "Attention":
            assert {"q_num_heads", "kv_num_heads"} <= {a.name for a in node.attribute}


@pytest.mark.parametrize(("precision", "left"), [("float32", False), ("float16", True)])
def test_group_norms_are_the_engines_kernels(precision: str, left: bool, tmp_path: Path) -> None:
    source = checkpoint("autoencoder-kl", tmp_path / "model")
    network: Any = api.open_checkpoint(source).model()
    torch.manual_seed(0)
    with torch.no_grad():  # fresh ones scale by 1 and move by 0
        for module in network.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.weight.uniform_(0.5, 2)
                module.bias.uniform_(-1, 1)
    norms = sum(isinstance(m, torch.nn.GroupNorm) for m in network.decoder.modules())
    OrtExporter().export(network, tmp_path, precision=precision)
    found = operators(tmp_path / "decoder_model.onnx")
    kinds = ("GroupNormalization", "InstanceNormalization")
    assert [found[kind] for kind in kinds] == ([norms, 0] if left else [0, norms])
    latents = torch.randn(2, network.config.latent_channels, 3, 5)
    with torch.no_grad():
        want = network.decode(latents).numpy()
    session = onnxruntime.InferenceSession(tmp_path / "decoder_model.onnx")
    [port] = session.get_inputs()
    given = latents.numpy().astype("float16" if left else "float32")
    [got] = session.run(None, {port.name: given})
    assert np.abs(got - want).max() < (2e-2 if left else 1e-5) * np.abs(want).max()


def test_tokens_are_those_of_the_other_profile_while_the_buffers_grow(
    exported: Mapping[str, Path],
) -> None:
    texts = ["a", "several more words, so that the rows are ragged"]
    found = []
    for name in ("onnx", "onnx-ort"):
        pipeline = api.load(exported[name], device="cpu")
        found.append(pipeline(texts, max_new_tokens=2 * ROOM, eos_token_id=-1))
    assert found[0] == found[1]
    assert len(found[0][0]["tokens"]) == 2 * ROOM


def test_a_step_writes_into_the_buffer_that_it_was_given(exported: Mapping[str, Path]) -> None:
    session = api.load(exported["onnx-ort"], device="cpu").session
    ids = np.array([[1, 2, 3]])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": ids - 1}
    outputs, state = session.run("decoder", inputs)
    assert outputs["logits"].shape[1] == 1
    step = {
        "input_ids": ids[:, :1],
        "attention_mask": np.ones((1, 4), np.int64),
        "position_ids": np.array([[3]]),
    }
    _, after = session.run("decoder", step, state)
    for name, held in state.items():
        assert after[name].buffers is held.buffers
        assert (held.shape()[2], after[name].shape()[2]) == (3, 4)


def test_buffers_that_somebody_has_filled_further_are_copied() -> None:
    value = np.arange(6, dtype=np.float32).reshape(1, 2, 3, 1)
    first = Buffers({"key": value}, {"key": 2}, 4, "cpu")
    held = first.held()
    assert reserve(held, {"key": 2}, 5, "cpu") is first
    first.filled = 5  # a call has written two more
    other = reserve(held, {"key": 2}, 5, "cpu")
    assert other is not first
    np.testing.assert_array_equal(other.held()["key"].numpy(), value)
    assert first.shapes["key"] == (1, 2, ROOM, 1)
    wider = reserve(first.held(), {"key": 2}, ROOM + 1, "cpu")
    assert wider.shapes["key"][2] >= 2 * ROOM
    assert wider.held()["key"].shape() == (1, 2, 5, 1)


def test_taken_rows_are_in_buffers_of_their_own() -> None:
    value = np.arange(6, dtype=np.float32).reshape(3, 1, 2, 1)
    held = Buffers({"key": value}, {"key": 2}, 2, "cpu").held()
    taken = take(held, np.array([2, 0, 0]), "cpu")
    np.testing.assert_array_equal(taken["key"].numpy(), value[[2, 0, 0]])
    assert taken["key"].buffers is not held["key"].buffers
    assert take({}, np.array([0]), "cpu") == {}


@pytest.mark.parametrize(
    ("width", "size"), [(BLOCK, BLOCK), (2 * LONG, LONG), (3 * BLOCK, BLOCK), (BLOCK - 28, BLOCK)]
)
def test_bytes_are_within_half_a_step_of_the_weights(width: int, size: int) -> None:
    matrix = np.random.default_rng(0).standard_normal((5, width)).astype(np.float32)
    matrix[2] = 0
    data, scales = blocks(matrix)
    back = ((data.astype(np.float32) - MIDDLE) * scales[..., None]).reshape(5, -1)
    assert data.dtype == np.uint8 and data.shape == (5, -(-width // size), size)
    assert (back[:, width:] == 0).all()
    steps = np.repeat(scales, size, axis=1)[:, :width]
    assert (np.abs(back[:, :width] - matrix) <= steps / 2 + 1e-7).all()
    signed, factors = columns(matrix.T)
    assert (np.abs(signed * factors - matrix.T) <= factors / 2 + 1e-7).all()


def test_rows_of_a_batch_do_not_touch_each_other_token_by_token(tmp_path: Path) -> None:
    spec = load_registry().models["gpt"]
    data, _ = prepared(spec)
    config = spec.config(**{**vars(data.config), "n_embd": 128, "n_head": 2, "vocab_size": 300})
    torch.manual_seed(0)
    OrtExporter().export(built(spec, config), tmp_path, precision="int8")
    assert operators(tmp_path / "model.onnx")["MatMulNBits"] == 4 * config.n_layer + 1
    assert operators(tmp_path / "model.onnx")["GatherBlockQuantized"] >= 1
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")

    def logits(ids: np.ndarray) -> np.ndarray:
        rows, length = ids.shape
        shape = rows, config.n_head, 16, config.head_size
        past = {
            value.name: np.zeros(shape, np.float32)
            for value in session.get_inputs()
            if value.name.startswith("past_key")
        }
        given = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.broadcast_to(np.arange(length), ids.shape),
            "past_length": np.zeros(1, np.int32),
        }
        return session.run(["logits"], given | past)[0]

    ids = np.random.default_rng(0).integers(300, size=(4, 7))
    together = logits(ids)
    for row in range(4):
        np.testing.assert_allclose(together[row], logits(ids[row : row + 1])[0], atol=1e-5)


Spoil = Callable[[onnx.ModelProto], None]


def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def change(proto: onnx.TensorProto, array: np.ndarray) -> None:
    proto.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), proto.name))


def attention(model: onnx.ModelProto) -> onnx.NodeProto:
    kinds = ("Attention", "MultiHeadAttention")
    return next(node for node in model.graph.node if node.op_type in kinds)


def wrong_mask(model: onnx.ModelProto) -> None:
    """What is hidden is hidden no longer."""
    where = next(node for node in model.graph.node if node.op_type == "Where")
    change(tensor(model, where.input[2]), np.zeros((), np.float32))


def wrong_scale(model: onnx.ModelProto) -> None:
    """Scores are scaled by 1 % more than they should be."""
    for node in model.graph.node:
        if node.op_type in ("Attention", "MultiHeadAttention"):
            scale = next(a for a in node.attribute if a.name == "scale")
            scale.f *= 1.01


def swapped_heads(model: onnx.ModelProto) -> None:
    """The projection that follows attention takes the first head for the last."""
    made_by = {out: node for node in model.graph.node for out in node.output}
    reads = {value: node for node in model.graph.node for value in node.input}
    node = reads[attention(model).output[0]]
    while node.op_type != "MatMul":
        node = reads[node.output[0]]
    assert node.input[1] not in made_by
    weight = tensor(model, node.input[1])
    array = numpy_helper.to_array(weight)
    size = len(array) // 2
    change(weight, np.concatenate([array[-size:], array[size:-size], array[:size]]))


SPOIL: dict[str, Spoil] = {f.__name__: f for f in (wrong_mask, wrong_scale, swapped_heads)}


class Spoilt(OrtExporter):
    """Either profile, one thing in its graph changed afterwards."""

    spoil: Spoil

    def export(self, model: Model, folder: Path, *, precision: str) -> dict[str, GraphFile]:
        graphs = super().export(model, folder, precision=precision)
        for graph in graphs.values():
            file = folder / graph.file
            proto = onnx.load(file)
            type(self).spoil(proto)
            onnx.save(proto, file)
        return graphs


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("spoil", SPOIL.values(), ids=SPOIL)
def test_a_broken_export_is_caught(
    spoil: Spoil, fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Spoilt, "spoil", staticmethod(spoil), raising=False)
    monkeypatch.setattr(Spoilt, "fused", fused)
    model = checkpoint("gpt", tmp_path / "model", initializer_range=0.3)
    registry = load_registry()
    spec = ExporterSpec(name="onnx", summary="", format="onnx", exporter=Ref(f"{__name__}:Spoilt"))
    monkeypatch.setitem(registry.exporters, "onnx", spec)
    with pytest.raises(Rejected, match="differs by"):
        api.export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt something, so that its loss can be measured."""
    root = tmp_path_factory.mktemp("trained")
    text = root / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 600)
    settings = {
        "model": {"n_layer": 2, "n_embd": 128, "n_head": 2, "n_positions": 32},
        "train": {"steps": 40, "batch_size": 8},
        "data": {"tokenizer": "char", "source": [str(text)]},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        api.train("gpt", root / "model", settings=settings)
    return root / "model"


@pytest.mark.parametrize("format", ["onnx", "onnx-ort"])
def test_what_int8_costs_is_measured(format: str, trained: Path, tmp_path: Path) -> None:
    artifact = api.export(trained, tmp_path / "int8", format=format, precision="int8")
    quality = artifact.manifest.receipt["quality"]
    assert quality["tolerated"] == {"loss": 0.02}
    model, export = quality["model"]["loss"], quality["export"]["loss"]
    assert model == pytest.approx(api.evaluate(trained).metrics["loss"], abs=1e-4)
    assert 0 < abs(export - model) < 0.02
    again = api.evaluate(tmp_path / "int8", data=[str(trained.parent / "text.txt")])
    whole = api.evaluate(trained, data=[str(trained.parent / "text.txt")])
    assert again.metrics["loss"] == pytest.approx(whole.metrics["loss"], abs=0.02)
    api.verify(tmp_path / "int8")


def test_an_export_that_costs_more_than_is_allowed_is_refused(
    trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(Rejected, match=r"loss is .* instead of .* --limit loss="):
        api.export(
            trained,
            tmp_path / "int8",
            format="onnx-ort",
            precision="int8",
            limits={"loss": 1e-9},
        )
    assert not (tmp_path / "int8").exists()


def test_int8_without_data_to_measure_it_on_is_refused(tmp_path: Path) -> None:
    model = checkpoint("gpt", tmp_path / "model")
    with pytest.raises(UsageError, match="--data"):
        api.export(model, tmp_path / "out", format="onnx-ort", precision="int8")
    with pytest.raises(UsageError, match=r"'int8' is not one of float32, float16"):
        api.export(model, tmp_path / "out", format="triton", precision="int8")
    with pytest.raises(UsageError, match="Only a coarse precision"):
        api.export(model, tmp_path / "out", data=["text.txt"])


@pytest.mark.parametrize(
    ("limit", "after", "refused"),
    [(0.02, 1.01, False), (0.02, 1.03, True), (0.02, 0.5, False), (-0.01, 0.995, False),
     (-0.01, 0.98, True), (-0.01, 1.5, False), (0.02, float("nan"), True)],
)  # fmt: skip
def test_the_sign_of_a_limit_says_which_way_is_worse(
    limit: float, after: float, refused: bool
) -> None:
    assert bool(worse({"figure": 1.0}, {"figure": after}, {"figure": limit})) is refused
    for before, found in (({"figure": 1.0}, {"other": after}), ({}, {"figure": after})):
        assert "figure was not measured" in worse(before, found, {"figure": limit})


@pytest.mark.parametrize(("usual", "bad", "good"), [(0.02, 1.0001, 0.9), (-0.01, 0.9999, 1.1)])
def test_a_limit_of_nothing_allows_nothing(usual: float, bad: float, good: float) -> None:
    allowed = limits({"figure": usual, "other": 1.0}, {"figure": 0})
    assert allowed == {"figure": 0, "other": 1.0}
    before = {"figure": 1.0, "other": 0.0}
    assert "instead of" in worse(before, {**before, "figure": bad}, allowed)
    for fine in (1.0, good):
        assert not worse(before, {**before, "figure": fine}, allowed)


@pytest.mark.parametrize(
    ("limit", "reason"),
    [("los=1e-12", "no such figure.*Did you mean 'loss'"), ("loss=nan", "finite number.*not nan"),
     ("loss=inf", "finite number"), ("loss=-0.01", r"the sign of \+0.02"), ("loss=true", "`float`"),
     ("loss=much", "`float`")],
)  # fmt: skip
def test_what_is_no_limit_is_refused_before_anything_is_done(
    trained: Path, tmp_path: Path, limit: str, reason: str
) -> None:
    given: dict[str, Any] = {"format": "onnx-ort", "limits": dict([parse_assignment(limit)])}
    for precision in ("int8", "int4"):
        with pytest.raises(UsageError, match=f"--limit los.*{reason}"):
            api.export(trained, tmp_path / "out", data=["nowhere"], precision=precision, **given)
    assert not [*tmp_path.iterdir()]


def test_data_must_give_every_figure_that_has_a_limit(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = api.open_checkpoint(trained).spec.pipeline.load()
    monkeypatch.setattr(kind, "tolerated", {"loss": 0.02, "charm": -0.1})
    with pytest.raises(UsageError, match="gives gpt no charm"):
        api.export(trained, tmp_path / "out", format="onnx-ort", precision="int8")
    assert not [*tmp_path.iterdir()]
