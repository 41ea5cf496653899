"""Variational autoencoders: likelihoods, divergence and bounds, against torch.distributions,
closed forms and an integral."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from cambrian.model import Batch
from cambrian.runtime.torch import TorchSession
from cambrian_vae.config import ConvVAEConfig, Likelihood, VAEConfig
from cambrian_vae.likelihoods import bernoulli, divergence, gaussian, log_normal, logistic
from cambrian_vae.model import VAE, ConvVAE

SMALL: dict[str, Any] = {"image_size": (4, 4), "hidden_sizes": (6, 5), "latent_size": 3}


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def built(**changes: Any) -> VAE:
    torch.manual_seed(0)
    return VAE(VAEConfig(**{**SMALL, **changes})).eval()


def batch(count: int = 5) -> Batch:
    pixels = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return {"pixel_values": pixels}


# -- likelihoods ------------------------------------------------------------------------------


def test_divergence_is_torchs() -> None:
    mean, logvar = random(7, 3, 2), random(7, 3, 2, seed=1)
    latents = Normal(mean, (0.5 * logvar).exp())
    want = kl_divergence(latents, Normal(torch.zeros_like(mean), torch.ones_like(mean)))
    torch.testing.assert_close(divergence(mean, logvar), want.sum((1, 2)))
    assert float(divergence(torch.zeros(1, 4), torch.zeros(1, 4))) == 0


def test_log_normal_is_torchs() -> None:
    z, mean, logvar = random(4, 7, 3), random(7, 3, seed=1), random(7, 3, seed=2)
    want = Normal(mean, (0.5 * logvar).exp()).log_prob(z).sum(-1)
    torch.testing.assert_close(log_normal(z, mean, logvar), want)
    torch.testing.assert_close(log_normal(z), Normal(0.0, 1.0).log_prob(z).sum(-1))


def test_bernoulli_is_torchs_also_between_black_and_white() -> None:
    x, logits = torch.rand(2, 1, 3, 4, dtype=torch.float64), random(5, 2, 1, 3, 4)
    x[0] = x[0].round()
    log_p, log_q = torch.sigmoid(logits).log(), torch.sigmoid(-logits).log()
    want = (x * log_p + (1 - x) * log_q).sum((-3, -2, -1))
    torch.testing.assert_close(bernoulli(x, logits), want)
    whole = Bernoulli(logits=logits).log_prob(x.round()).sum((-3, -2, -1))
    torch.testing.assert_close(bernoulli(x.round(), logits), whole)
    far = torch.full((1, 1, 1, 1), 1e4)
    assert float(bernoulli(torch.zeros_like(far), far)) == -1e4


def test_gaussian_is_torchs() -> None:
    x, logits = torch.rand(2, 3, 3, 4, dtype=torch.float64), random(5, 2, 3, 3, 4)
    log_scale = torch.tensor(-1.3, dtype=torch.float64)
    want = Normal(torch.sigmoid(logits), log_scale.exp()).log_prob(x).sum((-3, -2, -1))
    torch.testing.assert_close(gaussian(x, logits, log_scale), want)


LEVELS = torch.arange(256).reshape(256, 1, 1, 1)


@pytest.mark.parametrize("log_scale", [-5.0, -3.0, -1.0, 0.5])
@pytest.mark.parametrize("logit", [-6.0, -0.3, 2.0])
def test_discretised_logistic_is_differences_of_sigmoids(logit: float, log_scale: float) -> None:
    """In float64, in numpy, level by level; and all 256 levels together are certain."""
    mean, scale = expit(logit), math.exp(log_scale)
    edges = (np.arange(257) - 0.5) / 255
    below = expit((edges - mean) / scale)
    below[0], below[-1] = 0, 1
    want = np.diff(below)
    x, logits = LEVELS.double() / 255, torch.full((256, 1, 1, 1), logit, dtype=torch.float64)
    found = logistic(x, logits, torch.tensor(log_scale, dtype=torch.float64)).exp().numpy()
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-12)
    assert found.sum() == pytest.approx(1, abs=1e-9)


def test_discretised_logistic_holds_in_float32() -> None:
    """Where float32's difference of sigmoids is 0, its logarithm would be infinite."""
    x, log_scale = LEVELS.float() / 255, torch.tensor(-5.0)
    for logit in (-8.0, 0.0, 8.0):
        logits = torch.full((256, 1, 1, 1), logit).requires_grad_()
        found = logistic(x, logits, log_scale)
        exact = logistic(x.double(), logits.double(), log_scale.double())
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found.double(), exact, rtol=2e-4, atol=2e-3)
        assert float(found.detach().exp().sum()) == pytest.approx(1, abs=1e-3)
        [gradient] = torch.autograd.grad(found.sum(), logits)
        assert torch.isfinite(gradient).all()


# -- bounds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "logistic"])
def test_the_loss_is_reconstruction_and_divergence(likelihood: Likelihood) -> None:
    model, given = built(likelihood=likelihood, kl_weight=2.5), batch()
    x = given["pixel_values"]
    with torch.no_grad():
        losses = model.loss(given, torch.Generator().manual_seed(3))
        mean, logvar = model.encode(x)
        noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(3))
        logits = model.decode(mean + noise * (0.5 * logvar).exp())
        recon = -model.log_likelihood(x, logits).mean()
    kl = divergence(mean, logvar).mean()
    torch.testing.assert_close(losses["recon"], recon)
    torch.testing.assert_close(losses["kl"], kl)
    torch.testing.assert_close(losses["loss"], recon + 2.5 * kl)
    evaluated = model.evaluate(given)
    torch.testing.assert_close(evaluated["elbo"], -(evaluated["recon"] + evaluated["kl"]))
    assert torch.equal(evaluated["elbo"], model.evaluate(given)["elbo"])


def test_log_weights_are_torchs() -> None:
    model, x = built(), batch()["pixel_values"].round()
    with torch.no_grad():
        mean, logvar = model.encode(x)
        found, recon = model.log_weights(x, mean, logvar, 7, torch.Generator().manual_seed(2))
        noise = torch.randn(7, 5, 3, generator=torch.Generator().manual_seed(2))
        guide = Normal(mean, (0.5 * logvar).exp())
        latents = guide.mean + noise * guide.stddev
        logits = torch.stack([model.decode(each) for each in latents])
    given = Bernoulli(logits=logits).log_prob(x).sum((-3, -2, -1))
    prior = Normal(0.0, 1.0).log_prob(latents).sum(-1)
    torch.testing.assert_close(found, given + prior - guide.log_prob(latents).sum(-1))
    torch.testing.assert_close(recon, -given.mean(0))


def test_more_samples_make_a_tighter_bound() -> None:
    """One sample's mean is the ELBO; the bound grows with the samples up to log p(x)."""
    given = batch()
    model = built(evaluation_samples=20000)
    with torch.no_grad():  # a guide far from the posterior, so that the bounds are apart
        model.mean.bias.add_(1.0)
        decoder = [m for m in model.decoder.modules() if isinstance(m, torch.nn.Linear)]
        for layer in decoder:
            layer.weight *= 3
        x = given["pixel_values"]
        generator = torch.Generator().manual_seed(0)
        mean, logvar = model.encode(x)
        weights, recon = model.log_weights(x, mean, logvar, 64 * 400, generator)
        bounds: list[float] = []
        for count in (1, 4, 64):
            groups = weights.reshape(-1, count, 5)
            bounds += [float((torch.logsumexp(groups, 1) - math.log(count)).mean())]
        elbo = float(-(recon + divergence(mean, logvar)).mean())
        top = float(model.log_px(x, generator).mean())
    assert bounds[0] == pytest.approx(elbo, abs=0.05)
    assert bounds[0] + 0.1 < bounds[1] and bounds[1] + 0.02 < bounds[2] < top + 0.02


@pytest.mark.parametrize("count", [2, 8])
def test_the_importance_weighted_loss_is_its_formula(count: int) -> None:
    model, given = built(importance_samples=count), batch()
    x = given["pixel_values"]
    with torch.no_grad():
        found = model.loss(given, torch.Generator().manual_seed(4))["loss"]
        mean, logvar = model.encode(x)
        weights, _ = model.log_weights(x, mean, logvar, count, torch.Generator().manual_seed(4))
    want = -weights.double().exp().mean(0).log().mean()
    assert float(found) == pytest.approx(float(want), rel=1e-5)


# -- log p(x) ---------------------------------------------------------------------------------


def integrated(model: VAE, x: Tensor) -> Tensor:
    """log of the integral of p(x | z) N(z; 0, 1) over one latent, by the trapezoidal rule."""
    z = torch.linspace(-12, 12, 20001)[:, None]
    with torch.no_grad():
        logits = model.decode(z).double()
    given = Bernoulli(logits=logits[:, None]).log_prob(x.double()).sum((-3, -2, -1))
    prior = Normal(0.0, 1.0).log_prob(z.double())
    return torch.trapezoid((given + prior).exp(), z[:, 0].double(), dim=0).log()


def one_latent(**changes: Any) -> tuple[VAE, Tensor]:
    """Four pixels that depend on one latent, an encoder that knows how, and all 16 pictures."""
    model = built(image_size=(2, 2), latent_size=1, hidden_sizes=(8,), **changes)
    with torch.no_grad():
        for layer in (m for m in model.decoder.modules() if isinstance(m, torch.nn.Linear)):
            layer.weight *= 2
    every = torch.tensor([[n >> bit & 1 for bit in range(4)] for n in range(16)])
    x = every.reshape(16, 1, 2, 2).float()
    guide = [*model.encoder.parameters(), *model.mean.parameters(), *model.logvar.parameters()]
    optimizer = torch.optim.Adam(guide, 0.02)
    for step in range(150):
        optimizer.zero_grad()
        model.loss({"pixel_values": x}, torch.Generator().manual_seed(step))["loss"].backward()
        optimizer.step()
    return model, x


def test_log_px_is_the_integral() -> None:
    model, x = one_latent(evaluation_samples=5000)
    want = integrated(model, x)
    assert float(want.exp().sum()) == pytest.approx(1, abs=1e-6)  # of all pictures there are
    assert want.std() > 0.3
    with torch.no_grad():
        found = model.log_px(x, torch.Generator().manual_seed(0)).double()
        elbo = model.evaluate({"pixel_values": x})["elbo"]
    torch.testing.assert_close(found, want, rtol=0, atol=0.02)
    assert float(elbo) < float(want.mean())
    evaluated = model.evaluate({"pixel_values": x})["log_px"]
    assert float(evaluated) == pytest.approx(float(want.mean()), abs=0.02)


def test_log_px_does_not_depend_on_how_many_are_decoded_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = one_latent(evaluation_samples=1001)
    monkeypatch.setattr("cambrian_vae.model.ROWS", 16 * 100)  # in parts, and one sample left over
    with torch.no_grad():
        found = model.log_px(x, torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(found, integrated(model, x), rtol=0, atol=0.06)


# -- deployed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [VAE, ConvVAE])
def test_the_graphs_are_encoder_and_decoder(kind: type[VAE]) -> None:
    config = ConvVAEConfig if kind is ConvVAE else VAEConfig
    torch.manual_seed(0)
    model = kind(config(**SMALL)).eval()
    session, x = TorchSession(model, "cpu"), batch()["pixel_values"]
    coded: Any = session.run("encoder", {"pixel_values": x.numpy()})[0]
    made: Any = session.run("decoder", {"latents": coded["mean"]})[0]["pixel_values"]
    with torch.no_grad():
        mean, logvar = model.encode(x)
        want = torch.sigmoid(model.decode(mean))
    for found, expected in ((coded["mean"], mean), (coded["logvar"], logvar), (made, want)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert made.shape == (5, 1, 4, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"importance_samples": 5, "kl_weight": 2.0}, "must be 1 where importance_samples"),
        ({"kl_weight": 0.0}, "must be positive"),
        ({"latent_size": 0}, "at least 1"),
        ({"evaluation_samples": -1}, "not negative"),
        ({"num_channels": 4}, "grey"),
    ],
)
def test_what_makes_no_model_is_refused(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VAEConfig(**change)
    with pytest.raises(ValueError, match="multiples of 4"):
        ConvVAEConfig(image_size=(30, 28))
