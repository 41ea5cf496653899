"""Variational autoencoders of small pictures, fully connected and convolutional.

Shapes: B batch, C channels, H and W pixels, L latents, K samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from cambrian.artifact import Port, Signature
from cambrian.model import Batch, Case, Graph, Losses, Model, Update
from cambrian_vae.config import ConvVAEConfig, VAEConfig
from cambrian_vae.likelihoods import divergence, log_likelihood, log_normal, normal

ROWS = 16384  # latents that are decoded at a time when log p(x) is estimated
LOGVAR_RANGE = (-20.0, 20.0)


class VAE(Model):
    """The fully connected one: (B, C, H, W) to the latents' mean and log variance, and back."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, features = self.build_encoder()
        self.mean = nn.Linear(features, config.latent_size)
        self.logvar = nn.Linear(features, config.latent_size)
        self.decoder = self.build_decoder()
        self.log_scale = (
            None if config.likelihood == "bernoulli" else nn.Parameter(torch.tensor(-2.0))
        )

    def build_encoder(self) -> tuple[nn.Module, int]:
        """Pixels to features, and how many there are."""
        sizes = (math.prod(self.config.shape), *self.config.hidden_sizes)
        return nn.Sequential(nn.Flatten(), *dense(sizes)), sizes[-1]

    def build_decoder(self) -> nn.Module:
        """Latents (B, L) to the pixels' logits (B, C, H, W)."""
        config = self.config
        sizes = (config.latent_size, *config.hidden_sizes[::-1])
        pixels = nn.Linear(sizes[-1], math.prod(config.shape))
        return nn.Sequential(*dense(sizes), pixels, nn.Unflatten(1, config.shape))

    def encode(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, C, H, W) in [0, 1] to mean and log variance (B, L), in float32."""
        features = self.encoder(pixel_values.to(self.mean.weight.dtype))
        return self.mean(features).float(), self.logvar(features).float().clamp(*LOGVAR_RANGE)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, L) to the pixels' logits (B, C, H, W), in float32."""
        return self.decoder(latents.to(self.mean.weight.dtype)).float()

    def updates(self) -> Sequence[Update]:
        return [Update(name="vae", module=self, loss=self.loss)]

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> Losses:
        """The negative bound on log p(x), in nats a picture.

        Of one sample: recon + kl_weight * kl, the divergence in closed form (Kingma, Welling
        2014, equation 10). Of more: -log mean_k p(x, z_k) / q(z_k | x) (Burda et al. 2016,
        equation 8), with recon and kl beside it for the record.
        """
        x, count = batch["pixel_values"], self.config.importance_samples
        mean, logvar = self.encode(x)
        kl = divergence(mean, logvar)
        if count == 1:
            latents = mean + (0.5 * logvar).exp() * normal(mean.shape, mean, generator)
            recon = -self.log_likelihood(x, self.decode(latents))
            loss = recon + self.config.kl_weight * kl
        else:
            weights, recon = self.log_weights(x, mean, logvar, count, generator)
            loss = math.log(count) - torch.logsumexp(weights, 0)
        return {"loss": loss.mean(), "recon": recon.mean(), "kl": kl.mean()}

    def log_likelihood(self, x: Tensor, logits: Tensor) -> Tensor:
        """log p(x | z), (..., B)."""
        return log_likelihood(self.config.likelihood, x, logits, self.log_scale)

    def log_weights(
        self,
        x: Tensor,
        mean: Tensor,
        logvar: Tensor,
        count: int,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """log p(x, z) / q(z | x) of `count` latents for each picture, (K, B), and the mean of
        -log p(x | z), (B,)."""
        latents = mean + (0.5 * logvar).exp() * normal((count, *mean.shape), mean, generator)
        logits = self.decode(latents.flatten(0, 1)).unflatten(0, latents.shape[:2])
        given = self.log_likelihood(x, logits)
        weights = given + log_normal(latents) - log_normal(latents, mean, logvar)
        return weights, -given.mean(0)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Losses:
        """The losses with the same noise in every call, and with `evaluation_samples` log p(x)."""
        generator = torch.Generator().manual_seed(0)
        losses = self.loss(batch, generator)
        losses = {**losses, "elbo": -(losses["recon"] + losses["kl"])}
        if self.config.evaluation_samples:
            losses["log_px"] = self.log_px(batch["pixel_values"], generator).mean()
        return losses

    def log_px(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The importance-weighted estimate of log p(x), (B,), of `evaluation_samples` samples; it
        is too low rather than too high, the less the more samples."""
        mean, logvar = self.encode(x)
        left, step = self.config.evaluation_samples, max(1, ROWS // len(x))
        total = torch.full((len(x),), -math.inf, device=x.device)
        while left:
            count = min(step, left)
            weights, _ = self.log_weights(x, mean, logvar, count, generator)
            total, left = torch.logaddexp(total, torch.logsumexp(weights, 0)), left - count
        return total - math.log(self.config.evaluation_samples)

    def graphs(self) -> Sequence[Graph]:
        """The encoder, pixels to mean and log variance, and the decoder, latents to pixels: what
        noise there is, is added by whoever calls."""
        pixels = Port("pixel_values", "float32", ("batch", *self.config.shape))
        latents = ("batch", self.config.latent_size)
        return [
            Graph(
                name="encoder",
                module=_Encoder(self),
                signature=Signature(
                    inputs=(pixels,),
                    outputs=(Port("mean", "float32", latents), Port("logvar", "float32", latents)),
                ),
            ),
            Graph(
                name="decoder",
                module=_Decoder(self),
                signature=Signature(
                    inputs=(Port("latents", "float32", latents),), outputs=(pixels,)
                ),
            ),
        ]

    def cases(self) -> Iterator[Case]:
        """Both graphs, over sizes of batches and seeds of noise."""
        for size in (1, 2, 3, 17):
            rng = np.random.Generator(np.random.Philox(size))
            pixels = rng.random((size, *self.config.shape), np.float32)
            latents = rng.standard_normal((size, self.config.latent_size), np.float32)
            yield Case(f"encoder, batch {size}", (("encoder", {"pixel_values": pixels}),))
            yield Case(f"decoder, batch {size}", (("decoder", {"latents": latents}),))
        far = np.full((2, self.config.latent_size), 4.0, np.float32)
        yield Case("decoder, far latents", (("decoder", {"latents": far}),))


class ConvVAE(VAE):
    """The convolutional one."""

    config: ConvVAEConfig

    @property
    def inner(self) -> tuple[int, int, int]:
        """Channels, height and width behind the last stage."""
        sizes = self.config.hidden_sizes
        height, width = (side // 2 ** len(sizes) for side in self.config.image_size)
        return sizes[-1], height, width

    def build_encoder(self) -> tuple[nn.Module, int]:
        config = self.config
        layers: list[nn.Module] = []
        for before, after in pairwise((config.num_channels, *config.hidden_sizes)):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        width = math.prod(self.inner)
        layers += [nn.Flatten(), nn.Linear(width, config.feature_size), nn.ReLU()]
        return nn.Sequential(*layers), config.feature_size

    def build_decoder(self) -> nn.Module:
        config = self.config
        sizes = (config.latent_size, config.feature_size, math.prod(self.inner))
        layers: list[nn.Module] = [*dense(sizes), nn.Unflatten(1, self.inner)]
        channels = (*config.hidden_sizes[::-1], config.num_channels)
        for before, after in pairwise(channels):
            layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        return nn.Sequential(*layers[:-1])


class _Encoder(nn.Module):
    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.encoder, self.mean, self.logvar = model.encoder, model.mean, model.logvar

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encoder(pixel_values.to(self.mean.weight.dtype))
        return self.mean(features), self.logvar(features).clamp(*LOGVAR_RANGE)


class _Decoder(nn.Module):
    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(self, latents: Tensor) -> tuple[Tensor]:
        weights = next(self.decoder.parameters())
        return (torch.sigmoid(self.decoder(latents.to(weights.dtype))),)


def dense(sizes: Sequence[int]) -> list[nn.Module]:
    """Linear layers from each size to the next, each with a ReLU behind it."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return layers
