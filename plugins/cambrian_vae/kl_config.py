"""Settings of AutoencoderKL, under the names that diffusers writes to config.json. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

MOST_BLOCKS = 10  # each halves the picture: beyond this there is none left


@dataclass(frozen=True, kw_only=True)
class AutoencoderKLConfig:
    """config.json of AutoencoderKL, the first stage of Stable Diffusion (Rombach et al. 2022).

    The defaults are those of diffusers' `AutoencoderKL`; sd-vae-ft-mse has four blocks of 128,
    256, 512 and 512 channels with two layers each. Every block but the last halves the picture.

    block_out_channels: of the encoder's blocks, in order; the decoder has them in reverse.
    layers_per_block: of the encoder; the decoder has one more in each.
    act_fn: "silu" is the only one there is.
    sample_size: the side in pixels of the pictures it was trained on, and so of a tile.
    scaling_factor, shift_factor, latents_mean, latents_std: how a diffusion model scales the
        latents; the autoencoder itself does not use them.
    force_upcast: float16 is too narrow for these weights (a word to other tools).

    How it is trained, which the reference's file does not say and its loader ignores:

    kl_weight: of the divergence in the loss; 1e-6 leaves the latents almost free.
    likelihood: "gaussian", of unit variance around the decoded picture.

    Raises ValueError where values cannot make a model.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    kl_weight: float = 1e-6
    likelihood: Literal["gaussian"] = "gaussian"

    def __post_init__(self) -> None:
        for name in (
            "in_channels",
            "out_channels",
            "layers_per_block",
            "latent_channels",
            "norm_num_groups",
            "sample_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.act_fn != "silu":
            raise ValueError(f"act_fn '{self.act_fn}' is not supported, only silu")
        self._check_blocks()
        for name in ("latents_mean", "latents_std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.latent_channels:
                raise ValueError(
                    f"{name} must have a number for each of the {self.latent_channels} "
                    f"latent_channels, not {len(values)}"
                )
        if not 0 <= self.kl_weight < math.inf:
            raise ValueError(f"kl_weight must be 0 or more, not {self.kl_weight}")

    def _check_blocks(self) -> None:
        """ValueError unless the blocks are of one number, known, and fit for group norms."""
        channels, count = self.block_out_channels, len(self.block_out_channels)
        if not 1 <= count <= MOST_BLOCKS:
            raise ValueError(f"block_out_channels must name 1 to {MOST_BLOCKS} blocks, not {count}")
        for name, known in (
            ("down_block_types", "DownEncoderBlock2D"),
            ("up_block_types", "UpDecoderBlock2D"),
        ):
            kinds = getattr(self, name)
            if len(kinds) != count:
                raise ValueError(
                    f"{name} has {len(kinds)} entries, but block_out_channels has {count}"
                )
            if strange := [kind for kind in kinds if kind != known]:
                raise ValueError(f"{name} '{strange[0]}' is not supported, only {known}")
        for number in channels:
            if number < 1 or number % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels must be multiples of norm_num_groups "
                    f"{self.norm_num_groups}, not {number}"
                )

    @property
    def downsampling(self) -> int:
        """Pixels on a side of what one latent stands for."""
        return 2 ** (len(self.block_out_channels) - 1)
