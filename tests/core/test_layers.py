"""Our kernels against torch's: the same values, the same gradients, the same odds."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cambrian import layers
from cambrian.layers import Dropout, attention, cross_entropy, drop

MASKS = {
    "none": None,
    "keys": torch.zeros(2, 1, 1, 17).masked_fill(torch.arange(17) > 11, -1e4),
    "bias": torch.randn(1, 3, 17, 17, generator=torch.Generator().manual_seed(1)),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_in_training_equals_the_fused_kernel(
    mask: str, scale: float | None, causal: bool
) -> None:
    if causal and mask != "none":
        return
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, 17, 8, requires_grad=True) for _ in range(3)]
    weights = torch.randn(2, 3, 17, 8)
    given = {"mask": MASKS[mask], "causal": causal, "scale": scale}
    results: list[list[Tensor]] = []
    for training in (True, False):
        y = attention(*inputs, **given, training=training)
        results.append([y, *torch.autograd.grad((y * weights).sum(), inputs)])
    for plain, fused in zip(*results, strict=True):
        assert torch.allclose(plain, fused, atol=1e-5)


def test_the_mask_gets_its_gradient() -> None:
    """T5 learns what it adds to the scores."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 8) for _ in range(3))
    bias = torch.randn(1, 3, 5, 5, requires_grad=True)
    plain, fused = (
        torch.autograd.grad(
            attention(query, key, value, mask=bias, training=t).square().sum(), bias
        )[0]
        for t in (True, False)
    )
    assert plain.abs().max() > 0.01 and torch.allclose(plain, fused, atol=1e-5)


def test_long_rows_and_evaluation_take_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    plain = layers.plain_attention
    monkeypatch.setattr(
        layers, "plain_attention", lambda *a, **k: calls.append(1) or plain(*a, **k)
    )
    query = torch.randn(1, 1, 9, 4)
    attention(query, query, query, training=True)
    assert len(calls) == 1
    attention(query, query, query, training=False)
    monkeypatch.setattr(layers, "SHORT", 8)
    attention(query, query, query, training=True)
    assert len(calls) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("cached", [2**20, 97 * 3])
def test_cross_entropy_by_rows_is_torchs(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, smoothing: float, cached: int
) -> None:
    monkeypatch.setattr(layers, "CACHED", cached)
    torch.manual_seed(0)
    logits = (torch.randn(40, 97) * 5).to(dtype).requires_grad_()
    labels = torch.randint(97, (40,))
    labels[3:9] = -100
    results: list[tuple[Tensor, Tensor]] = []
    for loss in (
        cross_entropy(logits, labels, smoothing),
        F.cross_entropy(logits.float(), labels, label_smoothing=smoothing),
    ):
        results.append((loss.detach(), *torch.autograd.grad(loss / 3, logits)))
    close = {"rtol": 0.01 if dtype.itemsize == 2 else 1e-5, "atol": 1e-6}
    torch.testing.assert_close(results[0], results[1], **close)
    with torch.no_grad():  # nothing to train: torch's own
        assert torch.equal(
            cross_entropy(logits, labels, smoothing),
            F.cross_entropy(logits.float(), labels, label_smoothing=smoothing),
        )


def test_nothing_to_predict_costs_nothing() -> None:
    logits = torch.randn(0, 7, requires_grad=True)
    loss = cross_entropy(logits, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None and logits.grad.shape == (0, 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.25, 0.9])
def test_dropout_drops_its_share_wherever_one_looks(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, 801, dtype=dtype, requires_grad=True)  # not a multiple of four
    y = drop(x, p)
    dropped = (y == 0).float()
    deviation = 5 * math.sqrt(p * (1 - p))
    assert float(dropped.mean()) == pytest.approx(p, abs=deviation / math.sqrt(x.numel()))
    for axis in (0, 1):  # no row or column, nor any of the four that share bits, is special
        means = dropped.mean(axis)
        assert (means - p).abs().max() < deviation * 1.2 / math.sqrt(x.shape[axis])
    flat = dropped.flatten()[: x.numel() // 4 * 4].view(-1, 4)
    pairs = torch.corrcoef(flat.T) - torch.eye(4)
    assert pairs.abs().max() < 5 / math.sqrt(len(flat))
    kept = y[y != 0]
    assert torch.allclose(kept.float(), torch.tensor(1 / (1 - p)), rtol=0.01)
    assert torch.equal(
        torch.autograd.grad(y.sum(), x)[0], y
    )  # what scales the one scales the other


def test_dropout_draws_by_the_seed_and_only_in_training() -> None:
    layer, x = Dropout(0.5), torch.randn(64, 3)
    drawn: list[Tensor] = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(layer(x))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert layer.eval()(x) is x
    assert drop(x, 0.0) is x
