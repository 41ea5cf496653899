"""Generators and discriminators: fully connected, convolutional and residual.

A generator takes noise (B, Z), with a class's embedding behind it, and gives pictures (B, C, H, W)
in [-1, 1]; a discriminator's `features` takes pictures and gives (B, F).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cambrian_gan.config import DCGANConfig, GANConfig, ResNetGANConfig

SLOPE = 0.2  # of leaky ReLUs


def dense_generator(noise: int, config: GANConfig) -> nn.Module:
    """Layer by layer to the pixels."""
    layers: list[nn.Module] = []
    for before, after in pairwise((noise, *config.hidden_sizes)):
        layers += [nn.Linear(before, after), nn.LeakyReLU(SLOPE)]
    pixels = nn.Linear(config.hidden_sizes[-1], math.prod(config.shape))
    return nn.Sequential(*layers, pixels, nn.Tanh(), nn.Unflatten(1, config.shape))


def dense_features(config: GANConfig) -> tuple[nn.Module, int]:
    """Layer by layer from the pixels."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise((math.prod(config.shape), *config.hidden_sizes[::-1])):
        layers += [nn.Linear(before, after), nn.LeakyReLU(SLOPE), nn.Dropout(0.3)]
    return nn.Sequential(*layers), config.hidden_sizes[0]


def conv_generator(noise: int, config: DCGANConfig) -> nn.Module:
    """A small map, doubled by transposed convolutions with batch norms between them."""
    sizes = config.hidden_sizes
    layers: list[nn.Module] = [
        nn.Linear(noise, math.prod(config.smallest), bias=False),
        nn.Unflatten(1, config.smallest),
        nn.BatchNorm2d(sizes[0]),
        nn.ReLU(),
    ]
    for before, after in pairwise(sizes):
        layers += [
            nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]
    pixels = nn.ConvTranspose2d(sizes[-1], config.num_channels, 4, stride=2, padding=1)
    return nn.Sequential(*layers, pixels, nn.Tanh()).apply(dcgan_weights)


def conv_features(config: DCGANConfig) -> tuple[nn.Module, int]:
    """Halved by convolutions; batch norms between them unless there is a penalty on each picture's
    gradient, which they would mix with the others'."""
    sizes = config.hidden_sizes[::-1]
    normed = config.gradient_penalty == "none"
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise((config.num_channels, *sizes))):
        layers += [nn.Conv2d(before, after, 4, stride=2, padding=1, bias=not (number and normed))]
        layers += [nn.BatchNorm2d(after)] if number and normed else []
        layers += [nn.LeakyReLU(SLOPE)]
    whole = nn.Sequential(*layers, nn.Flatten()).apply(dcgan_weights)
    return whole, math.prod(config.smallest)


def dcgan_weights(module: nn.Module) -> None:
    """Radford et al. 2016, section 4: a normal distribution of deviation 0.02."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


class SpectralNorm(nn.Module):
    """A convolution or linear layer whose weight is divided by its largest singular value.

    Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks", algorithm 1:
    one step of the power iteration in each training pass, on a vector that is kept.
    """

    left: Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("left", F.normalize(torch.randn(layer.weight.shape[0]), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layer.weight.float().flatten(1)
        with torch.no_grad():
            right = F.normalize(weight.T @ self.left, dim=0)
            if self.training:
                self.left.copy_(F.normalize(weight @ right, dim=0))
            left = self.left.clone()  # the next pass changes it, and the gradient needs this one
        largest = left @ weight @ right
        scaled = (self.layer.weight / largest).to(x.dtype)
        bias = None if self.layer.bias is None else self.layer.bias.to(x.dtype)
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, scaled, bias)
        return F.conv2d(x, scaled, bias, padding=self.layer.padding)  # pyright: ignore[reportArgumentType]


class UpBlock(nn.Module):
    """(B, in, H, W) to (B, out, 2 * H, 2 * W), with a way round."""

    def __init__(self, before: int, after: int, normed: bool) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before) if normed else nn.Identity()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(after) if normed else nn.Identity()
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.interpolate(F.relu(self.norm1(x)), scale_factor=2.0, mode="nearest")
        hidden = self.conv2(F.relu(self.norm2(self.conv1(hidden))))
        return hidden + F.interpolate(self.shortcut(x), scale_factor=2.0, mode="nearest")


class DownBlock(nn.Module):
    """(B, in, H, W) to (B, out, H / 2, W / 2), with a way round."""

    def __init__(self, before: int, after: int, normed: bool) -> None:
        super().__init__()
        layers = (nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1),
                  nn.Conv2d(before, after, 1))  # fmt: skip
        self.conv1, self.conv2, self.shortcut = (
            SpectralNorm(layer) if normed else layer for layer in layers
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv2(F.leaky_relu(self.conv1(F.leaky_relu(x, SLOPE)), SLOPE))
        return F.avg_pool2d(hidden + self.shortcut(x), 2)


def resnet_generator(noise: int, config: ResNetGANConfig) -> nn.Module:
    """A small map, doubled by residual blocks."""
    sizes = (*config.hidden_sizes, config.hidden_sizes[-1])
    blocks = [UpBlock(*pair, config.batch_norm) for pair in pairwise(sizes)]
    return nn.Sequential(
        nn.Linear(noise, math.prod(config.smallest)),
        nn.Unflatten(1, config.smallest),
        *blocks,
        nn.BatchNorm2d(sizes[-1]) if config.batch_norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(sizes[-1], config.num_channels, 3, padding=1),
        nn.Tanh(),
    )


def resnet_features(config: ResNetGANConfig) -> tuple[nn.Module, int]:
    """Halved by residual blocks."""
    sizes = config.hidden_sizes[::-1]
    blocks = [DownBlock(*pair, config.spectral_norm) for pair in pairwise((sizes[0], *sizes))]
    first = nn.Conv2d(config.num_channels, sizes[0], 3, padding=1)
    pooled = (nn.LeakyReLU(SLOPE), nn.Flatten())
    whole = nn.Sequential(SpectralNorm(first) if config.spectral_norm else first, *blocks, *pooled)
    return whole, math.prod(config.smallest)
