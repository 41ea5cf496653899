"""AutoencoderKL, the autoencoder that latent diffusion works in (Rombach et al. 2022, section 3.1).

It is trained here as a variational autoencoder (Kingma, Welling 2014), without the perceptual and
the adversarial loss of the paper. Shapes: B batch, C channels, H and W pixels, L latent channels,
h and w latents (H = h * downsampling). Submodules carry the names of diffusers
(models/autoencoders/autoencoder_kl.py, vae.py; models/unets/unet_2d_blocks.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cambrian.artifact import Port, Signature
from cambrian.errors import UsageError
from cambrian.model import Batch, Case, Graph, Losses, Model, Update
from cambrian_vae.kl_config import AutoencoderKLConfig
from cambrian_vae.likelihoods import divergence, normal

EPSILON = 1e-6  # of every group norm
LOGVAR_RANGE = (-30.0, 20.0)  # its exponential stays finite and above 0 in float32


class ResnetBlock2D(nn.Module):
    """Two normed convolutions and a way round them, (B, in, H, W) to (B, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, EPSILON)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, EPSILON)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return self.conv_shortcut(x) + hidden


class Attention(nn.Module):
    """Every position looks at all others, with one head: (B, C, H, W) to the same."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, EPSILON)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.group_norm(x).flatten(2).mT[:, None]  # (B, 1, H * W, C)
        hidden = F.scaled_dot_product_attention(
            self.to_q(hidden), self.to_k(hidden), self.to_v(hidden)
        )
        return x + self.to_out[0](hidden[:, 0]).mT.reshape(x.shape)


class MidBlock2D(nn.Module):
    """What stands between the blocks that change the size, (B, C, h, w) to the same."""

    def __init__(self, channels: int, config: AutoencoderKLConfig) -> None:
        super().__init__()
        groups, count = config.norm_num_groups, int(config.mid_block_add_attention)
        self.attentions = nn.ModuleList(Attention(channels, groups) for _ in range(count))
        self.resnets = nn.ModuleList(ResnetBlock2D(channels, channels, groups) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        first, last = self.resnets
        x = first(x)
        for attention in self.attentions:
            x = attention(x)
        return last(x)


class Downsample2D(nn.Module):
    """Half the size, (B, C, H, W) to (B, C, H // 2, W // 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # on the right and below only, as it was trained


class Upsample2D(nn.Module):
    """Twice the size, (B, C, H, W) to (B, C, 2 * H, 2 * W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def resnets(sizes: tuple[int, int], count: int, groups: int) -> nn.ModuleList:
    """`count` blocks in a row, of which the first goes from the one number of channels to the
    other."""
    channels = [sizes[0], *[sizes[1]] * count]
    return nn.ModuleList(ResnetBlock2D(*pair, groups) for pair in pairwise(channels))


class DownEncoderBlock2D(nn.Module):
    """(B, in, H, W) to (B, out, H // 2, W // 2), or not halved where it is the last."""

    def __init__(self, sizes: tuple[int, int], config: AutoencoderKLConfig, last: bool) -> None:
        super().__init__()
        self.resnets = resnets(sizes, config.layers_per_block, config.norm_num_groups)
        self.downsamplers = nn.ModuleList([] if last else [Downsample2D(sizes[1])])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpDecoderBlock2D(nn.Module):
    """(B, in, H, W) to (B, out, 2 * H, 2 * W), or not doubled where it is the last."""

    def __init__(self, sizes: tuple[int, int], config: AutoencoderKLConfig, last: bool) -> None:
        super().__init__()
        self.resnets = resnets(sizes, config.layers_per_block + 1, config.norm_num_groups)
        self.upsamplers = nn.ModuleList([] if last else [Upsample2D(sizes[1])])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Pixels (B, C, H, W) to moments (B, 2 * L, h, w)."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        channels = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownEncoderBlock2D(sizes, config, last=number == len(channels) - 1)
            for number, sizes in enumerate(pairwise((channels[0], *channels)))
        )
        self.mid_block = MidBlock2D(channels[-1], config)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[-1], EPSILON)
        self.conv_out = nn.Conv2d(channels[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents (B, L, h, w) to pixels (B, C, H, W)."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        channels = config.block_out_channels[::-1]
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.mid_block = MidBlock2D(channels[0], config)
        self.up_blocks = nn.ModuleList(
            UpDecoderBlock2D(sizes, config, last=number == len(channels) - 1)
            for number, sizes in enumerate(pairwise((channels[0], *channels)))
        )
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[-1], EPSILON)
        self.conv_out = nn.Conv2d(channels[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


def pointwise(channels: int, wanted: bool) -> nn.Module:
    """A convolution of 1 by 1, or nothing where the config has none."""
    return nn.Conv2d(channels, channels, 1) if wanted else nn.Identity()


class AutoencoderKL(Model):
    """Pictures to a normal distribution over latents, and latents to pictures."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = pointwise(2 * config.latent_channels, config.use_quant_conv)
        self.post_quant_conv = pointwise(config.latent_channels, config.use_post_quant_conv)

    def encode(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, C, H, W) in [-1, 1] to the latents' mean and log variance (B, L, h, w).

        H and W are multiples of the config's `downsampling`.
        """
        pixels = pixel_values.to(self.encoder.conv_in.weight.dtype)
        mean, logvar = self.quant_conv(self.encoder(pixels)).chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, L, h, w), unscaled, to pixels (B, C, H, W) in about [-1, 1]."""
        return self.decoder(self.post_quant_conv(latents))

    def updates(self) -> Sequence[Update]:
        """One; UsageError where what comes out has other channels than what goes in."""
        if self.config.in_channels != self.config.out_channels:
            raise UsageError(
                f"An autoencoder learns to give back its input, but in_channels is "
                f"{self.config.in_channels} and out_channels {self.config.out_channels}; "
                "set both to the same."
            )
        return [Update(name="autoencoder", module=self, loss=self.loss)]

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> Losses:
        """The negative evidence lower bound of a batch, in nats a picture, by one sample.

        "recon" is half the squared error of "pixel_values", summed over a picture: the negative
        log-likelihood of unit variance without its constant, C * H * W / 2 * log(2 * pi). "kl" is
        the divergence from the standard normal distribution, and "loss" is recon plus kl times
        `kl_weight`, a bound where that is 1. Noise is drawn by `generator`, which is the CPU's,
        or else by torch's own. UsageError where the pictures cannot be halved often enough.
        """
        pixels, step = batch["pixel_values"], self.config.downsampling
        if pixels.shape[2] % step or pixels.shape[3] % step:
            raise UsageError(
                f"Pictures of {pixels.shape[2]} by {pixels.shape[3]} pixels do not fit this "
                f"autoencoder; make both sides multiples of {step}."
            )
        mean, logvar = (value.float() for value in self.encode(pixels))
        latents = mean + (0.5 * logvar).exp() * normal(mean.shape, mean, generator)
        decoded = self.decode(latents.to(self.decoder.conv_in.weight.dtype)).float()
        recon = 0.5 * (pixels.float() - decoded).square().sum((1, 2, 3)).mean()
        kl = divergence(mean, logvar).mean()
        return {"loss": recon + self.config.kl_weight * kl, "recon": recon, "kl": kl}

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Losses:
        """The losses with the same noise in every call: one sample, as in training."""
        return self.loss(batch, torch.Generator().manual_seed(0))

    def graphs(self) -> Sequence[Graph]:
        """The encoder and the decoder, of any batch, height and width."""
        config, dtype = self.config, str(next(self.parameters()).dtype).removeprefix("torch.")
        factor = f"{config.downsampling}*" if config.downsampling > 1 else ""
        size = (f"{factor}height", f"{factor}width")
        latent = ("batch", config.latent_channels, "height", "width")
        encoder = Signature(
            inputs=(Port("pixel_values", dtype, ("batch", config.in_channels, *size)),),
            outputs=(Port("mean", dtype, latent), Port("logvar", dtype, latent)),
        )
        decoder = Signature(
            inputs=(Port("latents", dtype, latent),),
            outputs=(Port("pixel_values", dtype, ("batch", config.out_channels, *size)),),
        )
        return [
            Graph(name="encoder", module=EncoderGraph(self), signature=encoder),
            Graph(name="decoder", module=DecoderGraph(self), signature=decoder),
        ]

    def cases(self) -> Iterator[Case]:
        """Both graphs in batches of 1, 2, 3; square and not; even and odd numbers of latents.

        At most 9 latents high: seconds even for the model of Stable Diffusion.
        """
        config, scale = self.config, self.config.downsampling
        for batch, height, width in ((1, 4, 4), (2, 5, 4), (3, 4, 7), (1, 9, 5)):
            generator = np.random.Generator(np.random.Philox(batch * height * width))
            shape = (batch, config.in_channels, scale * height, scale * width)
            pixels = generator.uniform(-1, 1, shape).astype(np.float32)
            latents = generator.standard_normal(
                (batch, config.latent_channels, height, width), np.float32
            )
            calls = (("encoder", {"pixel_values": pixels}), ("decoder", {"latents": latents}))
            yield Case(f"batch={batch} latents={height}x{width}", calls)


class EncoderGraph(nn.Module):
    """The encoder as it is deployed: pixels to mean and log variance."""

    def __init__(self, model: AutoencoderKL) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        return self.model.encode(pixel_values)


class DecoderGraph(nn.Module):
    """The decoder as it is deployed: latents to pixels."""

    def __init__(self, model: AutoencoderKL) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor) -> tuple[Tensor, ...]:
        return (self.model.decode(latents),)
