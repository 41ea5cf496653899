"""The arithmetic of adapters, and that a run moves nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cambrian_lora.adapters import Adapted, adapt, merged
from cambrian_lora.config import LoraConfig
from cambrian_lora.trainer import LoraTrainer
from safetensors.torch import load_file
from torch import Tensor, nn

from cambrian import (
    Case,
    Graph,
    Job,
    Model,
    OptimizerConfig,
    Outcome,
    Prepared,
    Recipe,
    TrainConfig,
    Update,
    UsageError,
)

CONFIG = LoraConfig(rank=2, alpha=6.0)


class Net(Model):
    """Words, two layers with one matrix, a norm, and an output that shares the words' matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.second(self.first(self.words(ids)).tanh())))

    def updates(self) -> Sequence[Update]:
        return [Update(name="net", module=self, loss=self.loss)]

    def loss(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        logits = self(batch["ids"]).float()
        return {"loss": nn.functional.cross_entropy(logits, (batch["ids"] + 1) % 11)}

    def graphs(self) -> Sequence[Graph]:
        return ()

    def cases(self) -> Iterable[Case]:
        return ()


class Rows:
    """All words, again and again."""

    def __len__(self) -> int:
        return 1

    def batch(self, index: int) -> Mapping[str, np.ndarray[Any, Any]]:
        return {"ids": np.arange(11)}


def net() -> Net:
    """The same each time, with a head that tells something."""
    torch.manual_seed(0)
    return Net()


def fit(
    folder: Path,
    model: Net,
    published: list[dict[str, Tensor]],
    *,
    config: LoraConfig = CONFIG,
    fresh: tuple[str, ...] = (),
    stop_at: int | None = None,
    **train: Any,
) -> Outcome:
    """Twelve steps; `published` gets what was published."""
    settings: dict[str, Any] = {"steps": 12, "device": "cpu", "precision": "float32", **train}
    asked = count(1)
    job = Job(
        model=model,
        data=Prepared(processor=None, config=None, train=Rows(), validation=None),  # pyright: ignore
        recipe=Recipe(
            train=TrainConfig(**settings),
            optimizer=OptimizerConfig(lr=0.05, warmup_steps=2),
            trainer=config,
        ),
        folder=folder,
        publish=lambda m: published.append({k: v.clone() for k, v in m.state_dict().items()}),
        fresh=fresh,
        stop=lambda: next(asked) == stop_at,
    )
    trainer = LoraTrainer()
    trainer.check(job)
    return trainer.fit(job)


def test_an_adapted_layer_is_w_plus_ba_alpha_over_rank() -> None:
    model = net()
    adapt(model, CONFIG, (), seed=0)
    layer = model.first
    assert isinstance(layer, Adapted)
    nn.init.normal_(layer.lora.B)
    x = torch.randn(3, 5, 8)
    a, b, w = (t.detach().double() for t in (layer.lora.A, layer.lora.B, layer.weight))
    want = x.double() @ (w + b @ a * 6 / 2).T + layer.bias.detach().double()
    torch.testing.assert_close(layer(x).double(), want, rtol=1e-5, atol=1e-5)


def test_training_starts_from_the_model_as_it_was_and_from_the_seed() -> None:
    ids, before = torch.arange(11), net()(torch.arange(11))
    models = [net() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        adapt(model, CONFIG, (), seed)
        assert torch.equal(model(ids), before)
    a, same, other = (model.get_parameter("first.lora.A") for model in models)
    assert torch.equal(a, same) and not torch.equal(a, other)
    assert a.std() > 0.1


def test_merged_computes_what_the_adapted_model_does_and_is_put_back() -> None:
    model, ids = net(), torch.arange(11)
    names = list(model.state_dict())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapt(model, CONFIG, (), seed=0)
    nn.init.normal_(model.get_parameter("first.lora.B"))
    adapted = model(ids)
    with merged(model):
        assert list(model.state_dict()) == names
        assert model.first.weight is model.second.weight, "what was shared is shared"
        assert model.head.weight is model.words.weight
        torch.testing.assert_close(model(ids), adapted)
        assert not torch.equal(model.first.weight, before["first.weight"])
    assert torch.equal(model(ids), adapted)
    held = model.state_dict()
    assert all(torch.equal(held[name], value) for name, value in before.items())


def test_a_shared_matrix_has_one_adapter_and_an_embeddings_has_none() -> None:
    model = net()
    adapt(model, LoraConfig(targets=("second",)), (), seed=0)
    assert isinstance(model.first, Adapted) and isinstance(model.second, Adapted)
    assert model.first.lora is model.second.lora
    assert model.first.bias is not model.second.bias
    assert type(model.head) is nn.Linear
    moving = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moving == {"first.lora.A", "first.lora.B"}


def test_a_run_moves_adapters_alone_and_keeps_nothing_else(tmp_path: Path) -> None:
    model, published = net(), []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outcome = fit(tmp_path, model, published)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert outcome.metrics["parameters_trained"] == 2 * (2 * 8)
    start = net().evaluate({"ids": torch.arange(11)})
    assert outcome.metrics["loss"] < 0.9 * float(start["loss"])
    (state,) = tmp_path.glob("step-*")
    assert {*load_file(state / "weights.safetensors")} == {"first.lora.A", "first.lora.B"}
    moments = load_file(state / "optimizer.safetensors")
    assert {name.split("/")[2] for name in moments} == {"first.lora.A", "first.lora.B"}
    plain = net()
    plain.load_state_dict(published[-1])
    torch.testing.assert_close(plain(torch.arange(11)), model(torch.arange(11)))


def test_what_begins_fresh_or_is_asked_for_is_trained_whole(tmp_path: Path) -> None:
    model, before = net(), net().state_dict()
    fit(tmp_path, model, [], config=LoraConfig(whole=("*.bias",)), fresh=("norm.weight",))
    held = model.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, held[name])}
    assert moved == {"norm.weight", "norm.bias", "first.bias", "second.bias"}


@pytest.mark.parametrize(
    "train",
    [{}, {"ema": 0.5}, {"precision": "bfloat16"}, {"accumulate": 2, "batch_size": 2}],
    ids=["plain", "ema", "bfloat16", "accumulated"],
)
def test_a_stopped_run_ends_with_the_bytes_of_one_that_was_not(
    tmp_path: Path, train: dict[str, Any]
) -> None:
    whole, parts = [], []
    fit(tmp_path / "whole", net(), whole, **train)
    assert not fit(tmp_path / "parts", net(), parts, stop_at=5, **train).complete
    assert fit(tmp_path / "parts", net(), parts, **train).complete
    assert all(torch.equal(value, parts[-1][name]) for name, value in whole[-1].items())
    for file in tmp_path.glob("whole/step-00000012/*.safetensors"):
        assert file.read_bytes() == (tmp_path / "parts/step-00000012" / file.name).read_bytes()


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    for pattern in ("head", "*.first"):  # the words' matrix; nothing
        with pytest.raises(UsageError, match=r"trainer\.targets: there is no"):
            fit(tmp_path, net(), [], config=LoraConfig(targets=(pattern,)))
    with pytest.raises(UsageError, match=r"trainer\.whole: there is no 'norm'.*could be"):
        fit(tmp_path, net(), [], config=LoraConfig(whole=("norm",)))
    with pytest.raises(UsageError, match="begins with none"):
        fit(tmp_path, net(), [], fresh=tuple(net().state_dict()))
    for change in ({"rank": 0}, {"alpha": 0.0}, {"alpha": float("nan")}):
        with pytest.raises(ValueError, match="rank is at least 1"):
            LoraConfig(**change)
    assert not any(tmp_path.iterdir())
