"""Losses, penalties, spectral norms and augmentation of adversarial networks, by their formulas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cambrian_gan.augment import augmented, brightness, cutout, translation
from cambrian_gan.config import Augmentation, LossName
from cambrian_gan.losses import (
    discriminator_loss,
    generator_loss,
    squared_gradient,
    wgan_penalty,
    zero_centred_penalty,
)
from cambrian_gan.networks import SpectralNorm

RNG = np.random.default_rng(0)
REAL, FAKE = RNG.normal(0.3, 2, 50), RNG.normal(-0.4, 2, 50)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


# What each side minimises, in probabilities where the paper has them, by two vectors of logits.
D_REAL, D_FAKE, D_BOTH = sigmoid(REAL), sigmoid(FAKE), sigmoid(REAL - FAKE)
JUDGE = -np.log(D_REAL).mean() - np.log(1 - D_FAKE).mean()
WANTED: dict[LossName, tuple[float, float]] = {
    "minimax": (JUDGE, np.log(1 - D_FAKE).mean()),
    "non-saturating": (JUDGE, -np.log(D_FAKE).mean()),
    "hinge": (relu(1 - REAL).mean() + relu(1 + FAKE).mean(), -FAKE.mean()),
    "wasserstein": (FAKE.mean() - REAL.mean(), -FAKE.mean()),
    "relativistic": (-np.log(D_BOTH).mean(), -np.log(1 - D_BOTH).mean()),
}


@pytest.mark.parametrize("kind", WANTED)
def test_losses_are_their_formulas(kind: LossName) -> None:
    real, fake = torch.from_numpy(REAL), torch.from_numpy(FAKE)
    found = discriminator_loss(kind, real, fake), generator_loss(kind, real, fake)
    np.testing.assert_allclose([float(loss) for loss in found], WANTED[kind], rtol=1e-12)


@pytest.mark.parametrize("kind", WANTED)
def test_losses_pull_the_logits_the_right_way(kind: LossName) -> None:
    """Also far out, where a logarithm of a probability would be infinite."""
    for level in (-200.0, -0.5, 0.5, 200.0):
        real, fake = (torch.full((4,), level).requires_grad_() for _ in range(2))
        loss = discriminator_loss(kind, real, fake)
        assert torch.isfinite(loss)
        loss.backward()
        assert real.grad is not None and fake.grad is not None
        assert (real.grad <= 0).all() and (fake.grad >= 0).all()
        [pull] = torch.autograd.grad(generator_loss(kind, real.detach(), fake), fake)
        assert (pull <= 0).all() and torch.isfinite(pull).all()


# -- penalties --------------------------------------------------------------------------------


def pictures(seed: int, count: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 3, 4, generator=generator, dtype=dtype)


@pytest.mark.parametrize("length", [0.25, 1.0, 3.0])
def test_penalties_of_a_linear_discriminator(length: float) -> None:
    """D(x) = w.x + b has the gradient w everywhere."""
    weight = pictures(1, 1)[0]
    weight = weight * length / weight.norm()

    def judge(x: Tensor) -> Tensor:
        return (x * weight).sum((1, 2, 3)) + 0.7

    real, fake = pictures(2), pictures(3)
    assert float(wgan_penalty(judge, real, fake).detach()) == pytest.approx(
        (length - 1) ** 2, abs=1e-6
    )
    at = real.clone().requires_grad_()
    penalty = float(zero_centred_penalty(judge(at), at).detach())
    assert penalty == pytest.approx(length**2 / 2, rel=1e-6)


def curved(seed: int = 0) -> nn.Module:
    """A small network in float64 whose gradient differs from place to place."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 1)).double()


def differences(model: nn.Module, x: Tensor, step: float = 1e-5) -> Tensor:
    """The squared length of the gradient at each picture, by central differences."""
    moves = torch.eye(12, dtype=torch.float64).reshape(12, 1, 3, 4) * step
    with torch.no_grad():
        slopes = [(model(x + m) - model(x - m))[:, 0] / (2 * step) for m in moves]
    return torch.stack(slopes).square().sum(0)


def test_gradients_are_finite_differences() -> None:
    model, at = curved(), pictures(4).requires_grad_()
    want = differences(model, at)
    assert want.std() > 0.05 * want.mean()
    found = squared_gradient(model(at)[:, 0], at)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=0)
    penalty = zero_centred_penalty(model(at)[:, 0], at).detach().double()
    torch.testing.assert_close(penalty, want.mean() / 2, rtol=1e-5, atol=0)


def test_the_wgan_penalty_is_taken_between_real_and_fake() -> None:
    model, real, fake = curved(), pictures(5), pictures(6)
    seen: list[Tensor] = []

    def judge(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return model(x)[:, 0]

    torch.manual_seed(3)
    penalty = float(wgan_penalty(judge, real, fake).detach())
    shares = ((seen[0] - fake) / (real - fake)).flatten(1)
    torch.testing.assert_close(shares, shares[:, :1].expand_as(shares))  # one share a picture
    assert shares.min() >= 0 and shares.max() <= 1 and len(shares[:, 0].unique()) == 6
    want = (differences(model, seen[0]).sqrt() - 1).square().mean()
    assert penalty == pytest.approx(float(want), rel=1e-5)


@pytest.mark.parametrize("kind", ["wgan", "r1"])
def test_penalties_can_be_differentiated(kind: str) -> None:
    """By the discriminator's weights: against differences of the penalty itself."""
    model, real, fake = curved(2), pictures(7), pictures(8)

    def penalty() -> Tensor:
        torch.manual_seed(0)
        if kind == "wgan":
            return wgan_penalty(lambda x: model(x)[:, 0], real, fake)
        at = real.clone().requires_grad_()
        return zero_centred_penalty(model(at)[:, 0], at)

    weight: Any = model.get_parameter("1.weight")
    [found] = torch.autograd.grad(penalty(), weight)
    for place in ((0, 0), (3, 5), (6, 11)):
        sides: list[float] = []
        for step in (1e-3, -1e-3):
            with torch.no_grad():
                weight[place] += step
            sides.append(float(penalty().detach()))
            with torch.no_grad():
                weight[place] -= step
        want = (sides[0] - sides[1]) / 2e-3
        assert float(found[place]) == pytest.approx(want, rel=5e-3, abs=2e-4)


# -- spectral norm ----------------------------------------------------------------------------


def layers() -> list[tuple[nn.Conv2d | nn.Linear, tuple[int, ...]]]:
    torch.manual_seed(1)
    return [(nn.Linear(9, 5), (2, 9)), (nn.Conv2d(3, 6, 3, padding=1), (2, 3, 5, 5))]


@pytest.mark.parametrize("number", [0, 1], ids=["linear", "conv"])
def test_the_largest_singular_value_becomes_one(number: int) -> None:
    layer, shape = layers()[number]
    layer.weight.data.mul_(7)
    normed, x = SpectralNorm(layer).train(), torch.randn(shape)
    for _ in range(200):
        normed(x)
    normed.eval()
    largest = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), ord=2)
    plain = layers()[number][0]
    plain.weight.data.copy_(layer.weight.detach() / largest)
    torch.testing.assert_close(normed(x), plain(x), rtol=1e-3, atol=1e-3)
    # The effective weight, read off the layer's answers to zero and to the unit pictures.
    if number == 0:
        effective = (normed(torch.eye(9)) - normed(torch.zeros(1, 9))).T.detach()
        assert float(torch.linalg.matrix_norm(effective, ord=2)) == pytest.approx(1, abs=1e-3)


def test_evaluation_leaves_the_vector_and_training_moves_it() -> None:
    normed, x = SpectralNorm(nn.Linear(9, 5)), torch.randn(2, 9)
    before = normed.left.clone()
    first = normed.eval()(x)
    assert torch.equal(normed.left, before) and torch.equal(normed(x), first)
    normed.train()(x)
    assert not torch.equal(normed.left, before)
    assert float(normed.left.norm()) == pytest.approx(1, abs=1e-6)
    assert "left" in normed.state_dict()


def test_two_passes_before_one_gradient_are_as_two_gradients() -> None:
    """A discriminator sees real pictures, then generated ones, and then learns."""
    torch.manual_seed(2)
    normed = SpectralNorm(nn.Linear(9, 5)).train()
    state = {name: value.clone() for name, value in normed.state_dict().items()}
    one, other = torch.randn(2, 9), torch.randn(2, 9)
    (normed(one).sum() + normed(other).square().sum()).backward()
    together = normed.layer.weight.grad
    assert together is not None
    normed.load_state_dict(state)
    [first] = torch.autograd.grad(normed(one).sum(), normed.layer.weight)
    [second] = torch.autograd.grad(normed(other).square().sum(), normed.layer.weight)
    torch.testing.assert_close(together, first + second)


# -- augmentation -----------------------------------------------------------------------------

ALL: Sequence[Augmentation] = ("brightness", "translation", "cutout")


@pytest.mark.parametrize("kinds", [ALL, *[(kind,) for kind in ALL]], ids=str)
def test_augmentation_keeps_shapes_and_passes_the_gradient(kinds: Sequence[Augmentation]) -> None:
    torch.manual_seed(0)
    given = torch.rand(5, 3, 16, 24).requires_grad_()
    changed = augmented(given, kinds)
    assert changed.shape == given.shape and not torch.equal(changed, given)
    [gradient] = torch.autograd.grad(changed.square().sum(), given)
    assert torch.isfinite(gradient).all() and (gradient.flatten(1).abs().sum(1) > 0).all()
    assert augmented(given, ()) is given


def test_each_picture_is_lighter_or_darker_by_up_to_a_half() -> None:
    torch.manual_seed(0)
    change = (brightness(torch.zeros(500, 2, 3, 3))).flatten(1)
    assert (change == change[:, :1]).all()
    assert -0.5 <= change.min() < -0.45 and 0.45 < change.max() <= 0.5


def test_each_picture_moves_by_up_to_an_eighth_and_black_fills_in() -> None:
    torch.manual_seed(0)
    given = torch.rand(120, 2, 8, 16)
    used: set[tuple[int, int]] = set()
    for before, after in zip(given, translation(given), strict=True):
        fitting = [
            (down, right)
            for down in range(-1, 2)
            for right in range(-2, 3)
            if torch.equal(after, moved(before, down, right))
        ]
        assert len(fitting) == 1
        used |= {*fitting}
    assert len(used) == 15


def moved(picture: Tensor, down: int, right: int) -> Tensor:
    """Pixel (y, x) is the given one's (y + down, x + right), or black."""
    result = torch.full_like(picture, -1.0)
    _, height, width = picture.shape
    for y in range(height):
        for x in range(width):
            if 0 <= y + down < height and 0 <= x + right < width:
                result[:, y, x] = picture[:, y + down, x + right]
    return result


def test_what_is_cut_out_is_one_rectangle_of_grey() -> None:
    torch.manual_seed(0)
    hidden = cutout(torch.ones(200, 2, 8, 12)) == 0
    assert (hidden[:, 0] == hidden[:, 1]).all()
    for each in hidden[:, 0]:
        rows, columns = each.any(1), each.any(0)
        assert torch.equal(each, rows[:, None] & columns[None])
        assert 1 <= int(rows.sum()) <= 5 and 1 <= int(columns.sum()) <= 7
        assert int((rows[1:] != rows[:-1]).sum()) <= 2  # in one piece
    assert int(hidden[:, 0].flatten(1).sum(1).max()) == 5 * 7
