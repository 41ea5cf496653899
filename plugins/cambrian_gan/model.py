"""Generative adversarial networks (Goodfellow et al. 2014).

Shapes: B batch, C channels, H and W pixels, Z noise, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cambrian.artifact import Port, Signature
from cambrian.model import Batch, Case, Graph, Losses, Model, Update
from cambrian.runtime import Array
from cambrian_gan import networks
from cambrian_gan.augment import augmented
from cambrian_gan.config import DCGANConfig, GANConfig, ResNetGANConfig
from cambrian_gan.losses import (
    discriminator_loss,
    generator_loss,
    wgan_penalty,
    zero_centred_penalty,
)


class Generator(nn.Module):
    """Noise (B, Z), and of a conditional one classes (B,), to pictures (B, C, H, W)."""

    def __init__(self, config: GANConfig, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.classes = embedding(config, config.latent_size)
        if self.classes is not None:
            # As long as a one-hot vector would be. As long as the noise (the root of its size),
            # the class drowns it out, and every picture of a class becomes the same.
            nn.init.normal_(self.classes.weight, std=config.latent_size**-0.5)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.classes is not None:
            latents = torch.cat([latents, self.classes(labels).to(latents.dtype)], 1)
        return self.body(latents.to(next(self.body.parameters()).dtype))


class Discriminator(nn.Module):
    """Pictures (B, C, H, W) to logits (B,): how real they look and, of a conditional one, how much
    of their class (Miyato, Koyama 2018, "cGANs with Projection Discriminator", equation 3)."""

    def __init__(self, config: GANConfig, features: nn.Module, size: int) -> None:
        super().__init__()
        self.features = features
        last = nn.Linear(size, 1)
        normed = isinstance(config, ResNetGANConfig) and config.spectral_norm
        self.logit = networks.SpectralNorm(last) if normed else last
        self.classes = embedding(config, size)
        if self.classes is not None:
            nn.init.zeros_(self.classes.weight)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Tensor:
        features = self.features(pixel_values.to(next(self.features.parameters()).dtype))
        logits = self.logit(features)[:, 0].float()
        if self.classes is not None:
            logits = logits + (features.float() * self.classes(labels).float()).sum(1)
        return logits


def embedding(config: GANConfig, size: int) -> nn.Embedding | None:
    """Of the classes, where the model knows any."""
    return nn.Embedding(len(config.labels), size) if config.labels else None


class GAN(Model):
    """The fully connected pair."""

    def __init__(self, config: GANConfig) -> None:
        super().__init__()
        self.config = config
        noise = config.latent_size * (2 if config.labels else 1)
        self.generator = Generator(config, self.build_generator(noise))
        self.discriminator = Discriminator(config, *self.build_features())

    def build_generator(self, noise: int) -> nn.Module:
        """(B, noise) to pictures."""
        return networks.dense_generator(noise, self.config)

    def build_features(self) -> tuple[nn.Module, int]:
        """Pictures to (B, F), and F."""
        return networks.dense_features(self.config)

    def updates(self) -> Sequence[Update]:
        """Every `discriminator_steps` steps the generator's, then the discriminator's.

        In this order the discriminator learns from the pictures that the generator has just been
        judged by, and they are made once.
        """
        config = self.config
        rates: dict[str, Any] = {"lr": config.discriminator_lr} if config.discriminator_lr else {}
        return [
            Update(
                name="generator",
                module=self.generator,
                loss=self.generator_loss,
                every=config.discriminator_steps,
            ),
            Update(
                name="discriminator",
                module=self.discriminator,
                loss=self.discriminator_loss,
                optimizer=rates,
            ),
        ]

    def make(self, batch: Batch) -> Tensor:
        """As many pictures as the batch has, of its classes."""
        real = batch["pixel_values"]
        latents = torch.randn(len(real), self.config.latent_size, device=real.device)
        return self.generator(latents, batch.get("labels"))

    def judge(self, pictures: Tensor, batch: Batch) -> Tensor:
        """The discriminator's logits."""
        changed = augmented(pictures, self.config.augment)
        return self.discriminator(changed, batch.get("labels"))

    def discriminator_loss(self, batch: Batch) -> Losses:
        """The loss with its penalty, and what the discriminator thinks of both sides."""
        config, penalty = self.config, self.config.gradient_penalty
        fake = batch.pop("fake", None)
        if fake is None:
            with torch.no_grad():
                fake = self.make(batch).float()
        real = batch["pixel_values"]
        if penalty in ("r1", "r1r2"):
            real, fake = real.detach().requires_grad_(), fake.requires_grad_()
        logits = self.judge(real, batch), self.judge(fake, batch)
        loss = discriminator_loss(config.loss, *logits)
        figures = {"real_logit": logits[0].mean(), "fake_logit": logits[1].mean()}
        if penalty == "none":
            return {"loss": loss, **figures}
        if penalty == "wgan":
            size = wgan_penalty(lambda mixed: self.judge(mixed, batch), real, fake)
        else:
            size = zero_centred_penalty(logits[0], real)
            if penalty == "r1r2":
                size = size + zero_centred_penalty(logits[1], fake)
        return {"loss": loss + config.penalty_weight * size, "penalty": size, **figures}

    def generator_loss(self, batch: Batch) -> Losses:
        """The loss alone; it leaves its pictures in the batch, as "fake"."""
        made = self.make(batch)
        batch["fake"] = made.detach().float()
        fake = self.judge(made, batch)
        real = fake.detach()
        if self.config.loss == "relativistic":
            with torch.no_grad():
                real = self.judge(batch["pixel_values"], batch)
        return {"loss": generator_loss(self.config.loss, real, fake)}

    def graphs(self) -> Sequence[Graph]:
        """The generator; noise and class are its inputs."""
        config = self.config
        inputs = [Port("latents", "float32", ("batch", config.latent_size))]
        if config.labels:
            inputs.append(Port("labels", "int64", ("batch",)))
        signature = Signature(
            inputs=tuple(inputs),
            outputs=(Port("pixel_values", "float32", ("batch", *config.shape)),),
        )
        return [Graph(name="generator", module=_Deployed(self.generator), signature=signature)]

    def cases(self) -> Iterator[Case]:
        """Over sizes of batches, seeds and classes, and noise at the end of what is drawn."""
        for size in (1, 2, 3, 17):
            rng = np.random.Generator(np.random.Philox(size))
            latents = rng.standard_normal((size, self.config.latent_size), np.float32)
            yield Case(f"batch {size}", (("generator", self.inputs(latents)),))
        far = np.full((2, self.config.latent_size), 3.0, np.float32)
        yield Case("far noise", (("generator", self.inputs(far)),))

    def inputs(self, latents: Array) -> dict[str, Array]:
        """The graph's inputs: the noise, and classes in turn."""
        if not self.config.labels:
            return {"latents": latents}
        return {"latents": latents, "labels": np.arange(len(latents)) % len(self.config.labels)}


class DCGAN(GAN):
    """The convolutional pair."""

    config: DCGANConfig

    def build_generator(self, noise: int) -> nn.Module:
        return networks.conv_generator(noise, self.config)

    def build_features(self) -> tuple[nn.Module, int]:
        return networks.conv_features(self.config)


class ResNetGAN(GAN):
    """The residual pair."""

    config: ResNetGANConfig

    def build_generator(self, noise: int) -> nn.Module:
        return networks.resnet_generator(noise, self.config)

    def build_features(self) -> tuple[nn.Module, int]:
        return networks.resnet_features(self.config)


class _Deployed(nn.Module):
    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> tuple[Tensor]:
        return (self.generator(latents, labels),)
