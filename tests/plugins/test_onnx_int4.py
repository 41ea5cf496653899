"""Weights in 4 bits: fitted to what goes into their products, and written without loss."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from cambrian import api, load_registry
from cambrian.checkpoint import Checkpoint
from cambrian.evaluation import measuring
from cambrian.loading import make_pipeline
from cambrian.model import Model
from cambrian.pipeline import Pipeline
from cambrian.progress import untold
from cambrian.runtime.torch import TorchSession
from cambrian.testing import built, prepared
from cambrian_onnx import fit
from cambrian_onnx.exporter import OrtExporter
from cambrian_onnx.fit import fitted
from cambrian_onnx.operators import halves
from cambrian_onnx.quantize import FINE, STEPS, grids
from cambrian_onnx.runtime import _options, optimised
from cambrian_onnx.triton import TritonExporter

WORDS = (
    *("the", "a", "old", "new", "red", "fox", "dog", "cat", "man", "sun"),
    *("saw", "ate", "hid", "met", "far", "near", "and", "but", "soon", "now"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model that knows which words there are, and of half which follows which."""
    root = tmp_path_factory.mktemp("trained")
    generator = np.random.default_rng(0)
    number, words = 0, list[str]()
    for chance in generator.random(9000):
        number = (number * 7 + 3) % 20 if chance < 0.5 else int(chance * 1e6) % 20
        words.append(WORDS[number])
    (root / "text.txt").write_text("\n".join(" ".join(words[n : n + 9]) for n in range(0, 9000, 9)))
    settings = {
        "model": {"n_layer": 2, "n_embd": 128, "n_head": 2, "n_positions": 32},
        "train": {"steps": 60, "batch_size": 16},
        "data": {"tokenizer": "char", "source": [str(root / "text.txt")], "clean": False},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        api.train("gpt", root / "model", settings=settings)
    return root / "model"


def opened(folder: Path) -> tuple[Checkpoint, Callable[..., Any], Callable[..., Any]]:
    """A checkpoint; what measures a model of its kind, and what runs a session on other data."""
    checkpoint = api.open_checkpoint(folder)
    processor = checkpoint.processor()
    measure, drive = measuring(checkpoint, processor, (), fitted=True)

    def pipeline(session: Any) -> Pipeline:
        spec, config = checkpoint.spec, checkpoint.config
        return make_pipeline(spec, config, checkpoint.path, processor, session)

    def loss(model: Model) -> float:
        return measure(pipeline(TorchSession(model)))["loss"]

    def run(session: Any) -> None:
        drive(pipeline(session))

    return checkpoint, loss, run


def nearest(weight: Tensor, moments: Tensor) -> Tensor:
    """Rounded to the nearest step: what fitting is to inputs that are not correlated."""
    return fitted(weight, torch.eye(len(moments)))


def with_outliers(model: Model, factor: float) -> Model:
    """The same function; but as in large language models, few inputs are far larger."""
    whole: Any = model
    with torch.no_grad():
        for block in whole.transformer.h:
            pairs = (block.ln_1, block.attn.c_attn), (block.ln_2, block.mlp.c_fc)
            for norm, product in pairs:
                norm.weight[::16] *= factor
                norm.bias[::16] *= factor
                product.weight[:, ::16] /= factor
    return model


def test_fitted_weights_cost_far_less_than_rounded_ones(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, loss, drive = opened(trained)
    model = with_outliers(checkpoint.model(), 12)
    before = loss(model)
    assert before == pytest.approx(loss(checkpoint.model()), abs=1e-4)
    monkeypatch.setattr(fit, "WORST", 1.0)
    ours = loss(fit.fit(model, drive)) - before
    monkeypatch.setattr(fit, "fitted", nearest)
    theirs = loss(fit.fit(model, drive)) - before
    assert theirs > 0.006, "too easy a model to tell"
    assert ours < theirs / 2
    assert loss(model) == before  # what was given is left as it was


@pytest.mark.parametrize("format", ["onnx", "onnx-ort"])
def test_an_export_in_int4_is_what_its_weights_say(
    format: str, trained: Path, tmp_path: Path
) -> None:
    artifact = api.export(trained, tmp_path / "int4", format=format, precision="int4")
    quality = artifact.manifest.receipt["quality"]
    assert quality["tolerated"] == {"loss": 0.02}
    assert 0 < abs(quality["export"]["loss"] - quality["model"]["loss"]) < 0.02
    assert artifact.manifest.receipt["limit"] < 0.1
    if format == "onnx-ort":
        assert bits(artifact.path) == [4] * 8 + [8]  # the head is the embedding
    found = optimised(artifact.path / "model.onnx", "cpu", _options(shared=False))
    assert found["com.microsoft.MatMulNBits"] == 9 and not found["MatMul"]
    api.verify(artifact.path)


def bits(folder: Path) -> list[int]:
    nodes = onnx.load(folder / "model.onnx", load_external_data=False).graph.node
    products = [node for node in nodes if node.op_type == "MatMulNBits"]
    assert not any(node.op_type == "MatMul" for node in nodes)
    return [a.i for node in products for a in node.attribute if a.name == "bits"]


def test_products_that_would_lose_much_stay_at_8_bits(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, _, drive = opened(trained)
    model = checkpoint.model()
    found: dict[str, float] = {}
    original, names = fit.lost, [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]

    def noted(*given: Tensor) -> float:
        found[names[len(found)]] = share = original(*given)
        return share

    monkeypatch.setattr(fit, "lost", noted)
    monkeypatch.setattr(fit, "WORST", 4.5e-4)
    OrtExporter().export(fit.fit(model, drive), tmp_path, precision="int4")
    expected = [8 if found[name] > fit.WORST else 4 for name in names[:-1]]
    assert bits(tmp_path) == [*expected, 8] and set(expected) == {4, 8}


def test_moments_are_gathered_in_as_many_passes_as_have_room(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, _, drive = opened(trained)
    model, passes = checkpoint.model(), []
    monkeypatch.setattr(fit, "ROOM", 4 * 512**2)

    def counted(session: Any) -> None:
        drive(session)
        passes.append(len(session.moments))

    fit.fit(model, counted)
    assert passes == [3, 1, 3, 1]


def test_weights_are_not_fitted_to_what_they_are_measured_on(trained: Path) -> None:
    checkpoint = api.open_checkpoint(trained)
    text = str(trained.parent / "text.txt")
    for data in ((), (text,)):
        measure, drive = measuring(checkpoint, checkpoint.processor(), data, fitted=True)
        rows: list[set[bytes]] = []
        for run in (measure, drive):
            reading: Any = Reading()
            run(reading)
            rows.append(reading.rows)
        assert min(map(len, rows)) > 5 and not rows[0] & rows[1]


class Reading:
    """Stands in for a pipeline, and keeps the rows that it is asked about."""

    tolerated: Mapping[str, float] = {"loss": 0.02}
    progress = staticmethod(untold)

    def __init__(self) -> None:
        self.rows = set[bytes]()

    def likelihood(self, batch: Mapping[str, Any]) -> tuple[float, int]:
        self.rows |= {np.asarray(row).tobytes() for row in batch["input_ids"]}
        return 1.0, batch["labels"].size


@pytest.mark.parametrize(("width", "signs"), [(96, 0), (80, 0), (64, 1), (64, -1)])
def test_what_lies_on_grids_is_found_again(width: int, signs: int) -> None:
    generator = np.random.default_rng(0)
    count = -(-width // FINE)
    steps = generator.integers(0, STEPS + 1, (6, count, FINE)).astype(np.float32)
    zeros = {0: generator.integers(0, STEPS + 1, (6, count, 1)), 1: 0, -1: STEPS}[signs]
    scales = generator.uniform(0.001, 2, (6, count, 1)).astype(np.float32)
    matrix = ((steps - zeros) * scales).reshape(6, -1)[:, :width]
    matrix[3, :FINE] = 0
    found = grids(matrix)
    assert found is not None
    data, factors, middles = found
    assert data.max() <= STEPS and middles.max() <= STEPS
    back = (data.astype(np.float32) - middles[..., None]) * factors[..., None]
    np.testing.assert_allclose(back.reshape(6, -1)[:, :width], matrix, rtol=1e-5)
    matrix[5, 3] += 0.3 * scales[5, 0, 0]
    assert grids(matrix) is None


def test_two_numbers_share_a_byte() -> None:
    assert halves(np.array([[1, 2, 15]], np.uint8)).tolist() == [[0x21, 0x0F]]


def test_fitting_makes_errors_good_by_what_is_correlated() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(500, 10) @ torch.randn(10, 70) + 0.1 * torch.randn(500, 70)
    weight, moments = torch.randn(20, 70), inputs.T @ inputs
    ours, theirs = fitted(weight, moments), nearest(weight, moments)
    assert grids(ours.numpy()) is not None
    steps = (weight[:, :FINE].amax(1) - weight[:, :FINE].amin(1)) / STEPS
    assert ((theirs - weight).abs()[:, :FINE] <= steps[:, None] / 2 + 1e-6).all()
    assert fit.lost(weight, ours, moments) < fit.lost(weight, theirs, moments) / 4
    error = (inputs @ (ours - weight).T).square().sum() / (inputs @ weight.T).square().sum()
    assert fit.lost(weight, ours, moments) == pytest.approx(float(error), rel=1e-3)


def test_int4_is_refused_where_it_does_not_pay() -> None:
    spec = load_registry().models["bert"]
    model = built(spec, prepared(spec)[0].config)
    reason = OrtExporter().refuses(model, "int4")
    assert reason is not None and "token by token" in reason
    assert OrtExporter().refuses(model, "int8") is None
    other = TritonExporter().refuses(model, "int8")
    assert other is not None and "not one of float32, float16" in other
