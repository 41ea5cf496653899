"""The loop: what moves, by how much, when, and what a stopped run goes on with."""

from __future__ import annotations

import json
import math
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fitting
from cambrian.config import OptimizerConfig
from cambrian.errors import CambrianError, UsageError
from cambrian.training.device import seed_step
from cambrian.training.loop import LoopTrainer, mean_metrics, to_device
from cambrian.training.muon import Muon
from cambrian.training.optimizers import Player, build, clip_gradients, rate_factor
from cambrian.training.state import saved_states
from cambrian.training.worker import Worker
from fitting import Duel, Line, Rows, equal, fit, recipe


def test_it_learns(tmp_path: Path) -> None:
    result = fit(tmp_path, recipe({"steps": 150, "evaluate_every": 50}, lr=0.04))
    assert result.outcome.complete
    assert result.outcome.metrics["validation_loss"] < 0.5
    assert result.events[0]["loss"] > 5


def test_one_step_of_adamw_is_the_textbooks(tmp_path: Path) -> None:
    """Against Loshchilov and Hutter 2019, algorithm 2, written out in numpy."""
    torch.manual_seed(0)
    model = Line()
    before = {k: v.detach().numpy().copy() for k, v in model.named_parameters()}
    batch = to_device(Rows(8).batch(0), torch.device("cpu"))
    model.loss(batch)["loss"].backward()
    gradients = {k: p.grad.numpy().copy() for k, p in model.named_parameters()}
    settings = recipe({"steps": 1, "clip": 0.0}, lr=0.1, warmup_steps=0, schedule="constant")
    after = dict(fit(tmp_path, settings, model).model.named_parameters())
    for name, old in before.items():
        g = gradients[name]
        moment, square = 0.1 * g / (1 - 0.9), 0.05 * g**2 / (1 - 0.95)
        decay = 0.1 if old.ndim >= 2 else 0.0
        want = old * (1 - 0.1 * decay) - 0.1 * moment / (np.sqrt(square) + 1e-8)
        np.testing.assert_allclose(after[name].detach().numpy(), want, rtol=1e-4, atol=1e-6)


def test_accumulated_batches_equal_one_large_batch(tmp_path: Path) -> None:
    whole = fit(tmp_path / "a", recipe({"batch_size": 16})).model
    parts = fit(tmp_path / "b", recipe({"batch_size": 4, "accumulate": 4})).model
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_only_matrices_decay_and_muon_takes_hidden_ones() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte = torch.nn.Embedding(5, 4)
            self.hidden = torch.nn.Linear(4, 4)
            self.lm_head = torch.nn.Linear(4, 5, bias=False)

    net = Net()
    config = OptimizerConfig(name="muon", adamw_parameters=("lm_head.*",), weight_decay=0.3)
    optimizers = build(net, config)
    (matrices,) = optimizers["muon"].param_groups
    assert [id(p) for p in matrices["params"]] == [id(net.hidden.weight)]
    decayed, plain = optimizers["adamw"].param_groups
    assert {id(p) for p in decayed["params"]} == {id(net.wte.weight), id(net.lm_head.weight)}
    assert decayed["weight_decay"] == 0.3 and plain["weight_decay"] == 0.0
    assert [id(p) for p in plain["params"]] == [id(net.hidden.bias)]


def test_muon_moves_matrices_as_torchs_does() -> None:
    """Alone and stacked, tall and wide, over steps; one matrix has no gradient and stays."""
    rng = torch.Generator().manual_seed(0)
    shapes = [(24, 8), (8, 24), (24, 8), (16, 16), (8, 8)]
    start = [torch.randn(shape, generator=rng) for shape in shapes]
    ours, theirs = ([torch.nn.Parameter(m.clone()) for m in start] for _ in range(2))
    settings: dict[str, float] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3}
    optimizers = [Muon(ours, **settings), torch.optim.Muon(theirs, **settings)]
    for _ in range(3):
        for mine, other in zip(ours[:-1], theirs[:-1], strict=True):
            mine.grad = torch.randn(mine.shape, generator=rng)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other, old in zip(ours[:-1], theirs[:-1], start[:-1], strict=True):
        moved = (other - old).norm()
        assert moved > 0.3
        assert (mine - other).norm() < 0.01 * moved  # bfloat16, added up in another order
        state, expected = (o.state[p] for o, p in zip(optimizers, (mine, other), strict=True))
        torch.testing.assert_close(dict(state), dict(expected))
    assert torch.equal(ours[-1], start[-1]) and ours[-1] not in optimizers[0].state


def test_clipping_is_torchs() -> None:
    ours, theirs = ([torch.nn.Parameter(torch.zeros(n)) for n in (3, 5, 2)] for _ in range(2))
    for mine, other in zip(ours[:2], theirs[:2], strict=True):
        mine.grad = torch.randn(mine.shape)
        other.grad = mine.grad.clone()
    for limit in (100.0, 0.5):
        norm = clip_gradients(ours, limit)
        torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(theirs, limit))
        torch.testing.assert_close([p.grad for p in ours[:2]], [p.grad for p in theirs[:2]])
    before = [p.grad.clone() for p in ours[:2] if p.grad is not None]
    assert float(clip_gradients(ours, 0.0)) == pytest.approx(0.5, rel=1e-4)
    assert all(torch.equal(p.grad, old) for p, old in zip(ours[:2], before, strict=True))  # pyright: ignore
    assert float(clip_gradients(ours[2:], 1.0)) == 0.0  # nothing has a gradient


def test_micro_batches_add_up_in_float32_on_the_master() -> None:
    model = Line()
    worker = Worker(model, torch.bfloat16, compiled=False)
    batches = [to_device(Rows(8).batch(i), torch.device("cpu")) for i in range(4)]
    total = [torch.zeros_like(p) for p in model.parameters()]
    for batch in batches:
        worker.gradients(0, [batch], list(model.parameters()))
        total = [t + p.grad / 4 for t, p in zip(total, model.parameters(), strict=True)]  # pyright: ignore
    worker.gradients(0, batches, list(model.parameters()))
    for want, p in zip(total, model.parameters(), strict=True):
        assert p.grad is not None and p.grad.dtype == torch.float32
        torch.testing.assert_close(p.grad, want)  # a quarter is exact in bfloat16
    assert all(w.grad is None for w in worker.model.parameters())


def test_seeding_a_step_decides_every_draw() -> None:
    def draws(seed: int, step: int) -> tuple[float, float, float]:
        seed_step(seed, step, torch.device("cpu"))
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert draws(1, 2) == draws(1, 2)
    for other in (draws(1, 3), draws(2, 2)):
        assert all(a != b for a, b in zip(draws(1, 2), other, strict=True))


@pytest.mark.parametrize(
    ("schedule", "middle"), [("cosine", 0.1 + 0.9 * 0.5), ("linear", 0.55), ("constant", 1.0)]
)
def test_rates(schedule: str, middle: float) -> None:
    config = OptimizerConfig(schedule=schedule, warmup_steps=10, min_lr_ratio=0.1)  # pyright: ignore[reportArgumentType]
    assert rate_factor(config, 0, 110) == pytest.approx(0.1)
    assert rate_factor(config, 9, 110) == pytest.approx(1.0)
    assert rate_factor(config, 59, 110) == pytest.approx(middle)
    assert rate_factor(config, 109, 110) == pytest.approx(1.0 if schedule == "constant" else 0.1)


def test_gradients_are_clipped_to_the_norm() -> None:
    model = Line()
    player = Player(model.updates()[0], OptimizerConfig())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) * 10
    norm = player.step(0, 10, 1.0)
    count = sum(p.numel() for p in model.parameters())
    assert float(norm) == pytest.approx(10 * math.sqrt(count), rel=1e-5)
    total = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
    assert total == pytest.approx(1.0, rel=1e-4)


def test_each_update_moves_its_own_parameters_on_its_own_steps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Duel()
    norm = {k: v.clone() for k, v in model.norm.state_dict().items()}
    outer = model.outer.weight.detach().clone()
    result = fit(tmp_path, recipe({"steps": 1}, lr=0.01, warmup_steps=0), model)
    assert torch.equal(model.norm.weight, norm["weight"])  # nobody's
    step = (model.outer.weight - outer).abs().max()
    assert float(step.detach()) > 0.04  # its own rate, 0.5, damped by decay and schedule
    assert {"inner_loss", "outer_loss", "inner_grad_norm"} <= result.events[0].keys()
    moved = model.outer.weight.detach().clone()
    fit(tmp_path, recipe({"steps": 2}, lr=0.01, warmup_steps=0), model)  # goes on: step 2
    assert torch.equal(model.outer.weight, moved)  # every=2 leaves out the second step


def test_average_follows_its_formula_and_is_published(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Line()
    mean = [p.detach().clone() for p in model.parameters()]
    for step in range(1, 4):
        raw = fit(tmp_path / "raw", recipe({"steps": step}, schedule="constant"), model).model
        decay = min(0.15, step / (9 + step))  # 0.1, then 0.15
        pairs = zip(mean, raw.parameters(), strict=True)
        mean = [m * decay + p.detach() * (1 - decay) for m, p in pairs]
    torch.manual_seed(0)
    result = fit(
        tmp_path / "ema", recipe({"steps": 3, "ema": 0.15}, schedule="constant"), held_out=False
    )
    for want, got in zip(mean, result.published[-1].values(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)
    assert equal(result.model, raw)  # the weights themselves go on unaveraged


def test_bfloat16_follows_float32_with_float32_masters(tmp_path: Path) -> None:
    exact = fit(tmp_path / "a", recipe({"steps": 60}))
    fast = fit(tmp_path / "b", recipe({"steps": 60, "precision": "bfloat16"}))
    assert all(p.dtype == torch.float32 for p in fast.model.parameters())
    assert not equal(exact.model, fast.model)
    assert fast.events[-2]["loss"] == pytest.approx(exact.events[-2]["loss"], rel=0.1, abs=0.02)
    # A weight that needs float32 to hold it: bfloat16 has 8 bits of significand.
    weight = fast.model.inner.weight.detach()  # pyright: ignore
    assert not torch.equal(weight, weight.bfloat16().float())


def test_buffers_are_shared_by_the_reduced_copy() -> None:
    class Normed(Line):
        def __init__(self) -> None:
            super().__init__()
            self.batch_norm = torch.nn.BatchNorm1d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.outer(self.batch_norm(self.inner(x))).squeeze(-1)

    model = Normed()
    worker = Worker(model, torch.bfloat16, compiled=False)
    batch = to_device(Rows(8).batch(0), torch.device("cpu"))
    worker.gradients(0, [batch], list(model.parameters()))
    assert int(model.batch_norm.num_batches_tracked) == 1
    assert model.batch_norm.running_mean.abs().sum() > 0
    assert model.batch_norm.running_mean.dtype == torch.float32


def half_frozen(seed: int = 0) -> Duel:
    """Two players, and a matrix of the first that must not move."""
    torch.manual_seed(seed)
    model = Duel()
    model.inner.weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("train", [{}, {"ema": 0.9, "precision": "bfloat16"}], ids=["", "reduced"])
def test_what_is_frozen_neither_moves_nor_is_kept(tmp_path: Path, train: dict[str, object]) -> None:
    before = half_frozen()
    whole = fit(tmp_path / "whole", recipe(train), half_frozen()).model
    assert torch.equal(whole.inner.weight, before.inner.weight)  # pyright: ignore
    assert not torch.equal(whole.inner.bias, before.inner.bias)  # pyright: ignore
    assert not whole.inner.weight.requires_grad and whole.outer.weight.requires_grad  # pyright: ignore
    (state,) = saved_states(tmp_path / "whole")
    names = {file.stem: load_file(file).keys() for file in state.glob("*.safetensors")}
    assert "inner.weight" not in names["weights"] and "inner.bias" in names["weights"]
    assert not any("inner/adamw/weight" in name for name in names["optimizer"])
    assert len(names.get("ema", names["weights"])) == len(names["weights"]) == 5

    fit(tmp_path / "parts", recipe(train), half_frozen(), stop_at=5)
    with pytest.raises(CambrianError, match="are others now"):
        fit(tmp_path / "parts", recipe(train), half_frozen(seed=1))
    assert equal(whole, fit(tmp_path / "parts", recipe(train), half_frozen()).model)


def test_an_update_of_frozen_parameters_alone_is_passed_over(tmp_path: Path) -> None:
    model = half_frozen()
    model.outer.requires_grad_(False)
    result = fit(tmp_path, recipe({"steps": 2}), model)
    assert "inner_loss" in result.events[0] and "outer_loss" not in result.events[0]
    assert all(p.requires_grad for p in model.norm.parameters())  # as it was


@pytest.mark.parametrize(
    "train",
    [{}, {"ema": 0.9}, {"precision": "bfloat16"}, {"accumulate": 2}],
    ids=["plain", "ema", "bfloat16", "accumulate"],
)
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_stopped_run_ends_with_the_bytes_of_one_that_was_not(
    tmp_path: Path, train: dict[str, object], name: str
) -> None:
    settings = recipe(train, name=name)
    torch.manual_seed(0)
    whole = fit(tmp_path / "whole", settings, Line(dropout=0.2))
    torch.manual_seed(0)
    first = fit(tmp_path / "parts", settings, Line(dropout=0.2), stop_at=5)
    assert not first.outcome.complete and first.outcome.step == 5
    torch.manual_seed(99)  # another start must not matter: everything comes from the state
    second = fit(tmp_path / "parts", settings, Line(dropout=0.2))
    assert second.outcome.complete and second.outcome.step == 12
    assert equal(whole.model, second.model)
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.published[-1].values(), second.published[-1].values(), strict=True)
    )
    files = [tmp_path / part / "step-00000012" for part in ("whole", "parts")]
    for file in files[0].glob("*.safetensors"):
        assert file.read_bytes() == (files[1] / file.name).read_bytes()
    logs = [(tmp_path / part / "metrics.jsonl").read_text() for part in ("whole", "parts")]
    losses = [[json.loads(line).get("loss") for line in log.splitlines()] for log in logs]
    assert losses[0] == losses[1]


def test_dropout_is_live_in_that_proof(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dry = fit(tmp_path / "a", recipe(), Line())
    torch.manual_seed(0)
    wet = fit(tmp_path / "b", recipe(), Line(dropout=0.2))
    torch.manual_seed(0)
    other = fit(tmp_path / "c", recipe({"seed": 1}), Line(dropout=0.2))
    assert not equal(dry.model, wet.model) and not equal(wet.model, other.model)


def test_the_best_by_held_out_loss_is_published_and_patience_ends(tmp_path: Path) -> None:
    # A rate so high that the loss gets worse after a while.
    settings = recipe(
        {"steps": 400, "evaluate_every": 4, "patience": 3}, lr=1.5, schedule="constant"
    )
    result = fit(tmp_path, settings)
    losses = [e["validation_loss"] for e in result.events if "validation_loss" in e]
    assert result.outcome.step < 400
    assert len(losses) - 1 - int(np.argmin(losses)) == 3
    assert result.outcome.metrics["best_validation_loss"] == min(losses)
    best = Line()
    best.load_state_dict(result.published[-1])
    batches = (to_device(Rows(16).batch(i), torch.device("cpu")) for i in range(4))
    assert mean_metrics(best, batches)["loss"] == pytest.approx(min(losses), rel=1e-6)


def test_metrics_are_weighted_by_count() -> None:
    class Counted(Line):
        def evaluate(self, batch: fitting.Batch) -> fitting.Losses:
            return {"loss": batch["loss"][0], "count": batch["count"][0]}

    batches = [
        {"loss": torch.tensor([loss]), "count": torch.tensor([count])}
        for loss, count in ((1.0, 1.0), (4.0, 3.0))
    ]
    assert mean_metrics(Counted(), iter(batches)) == {"loss": 3.25}


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    with pytest.raises(CambrianError, match=r"step 7: loss is nan.*state of step 4 is kept"):
        fit(tmp_path, recipe(), poison=6)
    (state,) = saved_states(tmp_path)
    assert state.name == "step-00000004"
    assert fit(tmp_path, recipe()).outcome.complete  # with the data mended it goes on


def test_a_loss_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    with pytest.raises(CambrianError, match="step 4"):
        fit(tmp_path, recipe({"log_every": 100}), poison=3)
    assert [state.name for state in saved_states(tmp_path)] == ["step-00000000"]


def test_damaged_state_is_one_sentence(tmp_path: Path) -> None:
    fit(tmp_path, recipe(), stop_at=5)
    (state,) = saved_states(tmp_path)
    file = state / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(CambrianError, match="is damaged"):
        fit(tmp_path, recipe())


def test_half_written_states_are_removed_not_used(tmp_path: Path) -> None:
    fit(tmp_path, recipe(), stop_at=5)
    partial = tmp_path / ".step-00000008.partial-abc"
    partial.mkdir()
    (partial / "state.json").write_text("{}")
    (tmp_path / "step-00000099").mkdir()  # no state.json: not complete
    result = fit(tmp_path, recipe())
    assert result.events[0]["resumed"] and result.events[0]["step"] == 5
    assert not partial.exists()


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"steps": 0}, "train.steps must be at least 1"),
        ({"ema": 1.0}, "decay"),
        ({"device": "cuda:7"}, "cannot be used here"),
        ({"device": "nonsense"}, "cannot be used here"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    tmp_path: Path, train: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        fit(tmp_path / "run", recipe(train))
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_threads_that_differ_on_resume_are_reported(tmp_path: Path) -> None:
    fit(tmp_path, recipe(), stop_at=5)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        result = fit(tmp_path, recipe())
    finally:
        torch.set_num_threads(threads)
    assert f"threads: {threads} -> {threads + 1}" in result.events[0]["note"]


def test_curve_is_a_picture_of_both_losses(tmp_path: Path) -> None:
    fit(tmp_path, recipe())
    picture = (tmp_path / "loss.svg").read_text()
    assert picture.startswith("<?xml") and "</svg>" in picture


def test_settings_of_torch_are_put_back(tmp_path: Path) -> None:
    fit(tmp_path, recipe({"matmul": "medium"}))
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.are_deterministic_algorithms_enabled()


def test_compiled_steps_follow_plain_ones(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("needs a C++ compiler, which only Linux machines are sure to have")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    plain = fit(tmp_path / "a", recipe({"steps": 4}))
    compiled = fit(tmp_path / "b", recipe({"steps": 4, "compile": True}))
    for one, other in zip(plain.model.parameters(), compiled.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_trainer_is_what_the_entry_point_names() -> None:
    from cambrian.registry import load_registry

    assert load_registry().pick("trainer", "loop").trainer.load() is LoopTrainer


def test_an_update_that_breaks_the_weights_is_not_saved(tmp_path: Path) -> None:
    settings = recipe({"steps": 4, "clip": 0.0}, lr=1e38, warmup_steps=0, schedule="constant")
    with pytest.raises(CambrianError, match=r"is (nan|inf|-inf); the state of step 0 is kept"):
        fit(tmp_path, settings, held_out=False)
    assert [state.name for state in saved_states(tmp_path)] == ["step-00000000"]
