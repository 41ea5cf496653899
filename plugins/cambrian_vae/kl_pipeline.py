"""Pictures of any size through AutoencoderKL, in tiles where they are large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cambrian import pictures
from cambrian.config import update
from cambrian.errors import UsageError
from cambrian.image_pipeline import Bytes, compared
from cambrian.runtime import Array
from cambrian.scores import Scores
from cambrian_vae.kl_config import AutoencoderKLConfig
from cambrian_vae.pipeline import Floats, VAEOptions, VAEPipeline, beside
from cambrian_vae.tiling import tiled_decode, tiled_encode


@dataclass(frozen=True, kw_only=True)
class KLOptions(VAEOptions):
    """tile: pictures of more pixels than this, either way, go through in tiles of so many, which
    overlap by a quarter; a multiple of what a latent stands for. 0 for never."""

    tile: int = 512
    batch_size: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tile < 0 or self.tile % 32:
            raise ValueError(f"tile must be 0 or a multiple of 32, not {self.tile}")


class KLPipeline(VAEPipeline):
    """As of the other autoencoders, but pictures keep their size: what does not fill the last
    latents is cut off. Latents are those of the model, not scaled by `scaling_factor`."""

    options = KLOptions
    config: AutoencoderKLConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __call__(self, inputs: Sequence[Any], **options: Any) -> list[Any]:
        """One picture after the other, since each may have a size of its own."""
        settings = update(self.defaults, options, "options")
        if not inputs:
            return super().__call__(inputs, **options)
        if settings.interpolate:
            raise UsageError("interpolate takes no pictures here; leave one of the two out.")
        return [self._one(name, settings) for name in inputs]

    def _one(self, name: Any, settings: KLOptions) -> dict[str, Any]:
        given = self.processor.open_whole(name, self.config.downsampling)
        mean, logvar = self.latents(given[None], settings)
        if settings.task == "encode":
            return {"input": str(name), "mean": mean[0], "logvar": logvar[0]}
        made = self.pixels(mean, settings)
        return {"input": str(name), "image": beside([given, made[0]]),
                "columns": settings.columns}  # fmt: skip

    def noise(self, numbers: Sequence[int], seed: int) -> Floats:
        height, width = (side // self.config.downsampling for side in self.processor.image_size)
        return pictures.noise((self.config.latent_channels, height, width), seed, numbers)

    def latents(self, pixels: Bytes, settings: VAEOptions) -> tuple[Floats, Floats]:
        tile = getattr(settings, "tile", 0)
        if not tile or max(pixels.shape[2:]) <= tile:
            return super().latents(pixels, settings)

        dtype = self.session.signatures["encoder"].inputs[0].dtype

        def encode(part: Floats) -> Floats:
            found, _ = self.session.run("encoder", {"pixel_values": part.astype(dtype)})
            return np.concatenate([found["mean"], found["logvar"]], axis=1, dtype=np.float32)

        moments = tiled_encode(encode, self.processor.normalize(pixels), tile, 0.25)
        mean, logvar = np.split(moments, 2, axis=1)
        return mean, logvar

    def pixels(self, latents: Floats, settings: VAEOptions) -> Bytes:
        tile = getattr(settings, "tile", 0) // self.config.downsampling
        if not tile or max(latents.shape[2:]) <= tile:
            return super().pixels(latents, settings)

        dtype = self.session.signatures["decoder"].inputs[0].dtype

        def decode(part: Floats) -> Floats:
            found, _ = self.session.run("decoder", {"latents": part.astype(dtype)})
            return np.asarray(found["pixel_values"], np.float32)

        return self.processor.denormalize(tiled_decode(decode, latents, tile, 0.25))

    def preview(self) -> bytes | None:
        """None: noise is no picture to a model whose latents another one is to make."""
        return None

    def score(self, examples: Sequence[tuple[Any, Any]], **options: Any) -> Scores | None:
        """With an extractor, how like their reconstructions are to the examples."""
        settings = update(self.defaults, options, "options")
        if not settings.extractor:
            return None
        given = np.stack([examples[n][0] for n in range(len(examples))])
        mean, _ = self.latents(given, settings)
        made = self.pixels(mean, settings)
        return compared(given, made, settings.extractor, self.device, self.progress)

    def probe(self) -> Mapping[str, Array]:
        """The brightest quarters of three small pictures."""
        shape = (self.config.latent_channels, 4, 4)
        latents = pictures.noise(shape, 1, range(3))
        return self.brightest(self.pixels(latents, replace(self.defaults, batch_size=2)))
