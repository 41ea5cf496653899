"""Log-likelihoods of pixels in [0, 1], divergences and noise, by torch.

Shapes: x (B, C, H, W), output (..., B, C, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 256


def bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    """sum x log p + (1 - x) log (1 - p) over a picture, (..., B) in nats."""
    return (x * logits - F.softplus(logits)).sum((-3, -2, -1))


def gaussian(x: Tensor, logits: Tensor, log_scale: Tensor) -> Tensor:
    """The log density of a normal distribution around sigmoid(logits), (..., B) in nats."""
    z = (x - torch.sigmoid(logits)) * (-log_scale).exp()
    return (-0.5 * z.square() - log_scale - 0.5 * math.log(2 * math.pi)).sum((-3, -2, -1))


def logistic(x: Tensor, logits: Tensor, log_scale: Tensor) -> Tensor:
    """The log probability of x's level of 256 under a logistic distribution around
    sigmoid(logits), (..., B) in nats; the outermost levels take what lies beyond.

    Kingma et al. 2016, "Improved Variational Inference with Inverse Autoregressive Flow",
    appendix.
    """
    scale = (-log_scale).exp()
    half = 0.5 / (LEVELS - 1)
    centred = x - torch.sigmoid(logits)
    above, below = (centred + half) * scale, (centred - half) * scale
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - e^(b - a)), where nothing cancels
    inside = F.logsigmoid(above) + F.logsigmoid(-below) + torch.log(-torch.expm1(below - above))
    lowest, highest = F.logsigmoid(above), F.logsigmoid(-below)
    levels = torch.where(x < half, lowest, torch.where(x > 1 - half, highest, inside))
    return levels.sum((-3, -2, -1))


def log_likelihood(
    kind: Literal["bernoulli", "gaussian", "logistic"],
    x: Tensor,
    logits: Tensor,
    log_scale: Tensor | None,
) -> Tensor:
    """By the likelihood's name."""
    if log_scale is None:
        return bernoulli(x, logits)
    return (gaussian if kind == "gaussian" else logistic)(x, logits, log_scale.float())


def divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) over all but the first dimension, (B,) in nats.

    Kingma, Welling 2014, appendix B.
    """
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def log_normal(z: Tensor, mean: Tensor | float = 0.0, logvar: Tensor | float = 0.0) -> Tensor:
    """The log density of a diagonal normal distribution over the last dimension, in nats."""
    variance = torch.as_tensor(logvar, device=z.device)
    squares = (z - mean).square() * (-variance).exp()
    return -0.5 * (squares + variance + math.log(2 * math.pi)).sum(-1)


def normal(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise: by `generator`, which is the CPU's, or else by torch's own."""
    if generator is None:
        return torch.randn(tuple(shape), device=like.device)
    return torch.randn(tuple(shape), generator=generator).to(like.device)
