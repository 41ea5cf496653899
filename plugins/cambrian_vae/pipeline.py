"""Sampling, reconstructing, encoding and interpolating, on any engine and in numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cambrian import pictures
from cambrian.config import update
from cambrian.errors import UsageError
from cambrian.image_pipeline import (
    Bytes,
    ImageOptions,
    ImagePipeline,
    require_equal_shapes,
)
from cambrian.progress import told
from cambrian.runtime import Array
from cambrian.scores import Scores
from cambrian_vae.config import VAEConfig

ACTIVE = 0.01  # Burda et al. 2016, appendix C: a unit is active if its mean varies by more
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class VAEOptions(ImageOptions):
    """task: with pictures given, "reconstruct" them or "encode" them to latents."""

    task: Literal["reconstruct", "encode"] = "reconstruct"


class VAEPipeline(ImagePipeline):
    """Without inputs, pictures of numbered noise; picture files give {"input", "image"} with the
    reconstruction beside the input, {"input", "mean", "logvar"} for task=encode, or, with
    `interpolate`, the walk through their latents."""

    options = VAEOptions
    config: VAEConfig

    def __call__(self, inputs: Sequence[Any], **options: Any) -> list[Any]:
        """Results as above; UsageError or BrokenFile for what is no picture."""
        settings = update(self.defaults, options, "options")
        if not inputs:
            if settings.task == "encode":
                raise UsageError("task=encode takes picture files: name some.")
            numbers = range(settings.count)
            latents = self.noise(numbers, settings.seed)
            return self.shown(self.walk(latents, settings), settings)
        pixels = np.stack([self.processor.open(name) for name in inputs])
        mean, logvar = self.latents(pixels, settings)
        if settings.task == "encode":
            return [
                {"input": str(name), "mean": m, "logvar": v}
                for name, m, v in zip(inputs, mean, logvar, strict=True)
            ]
        if settings.interpolate:
            return self.shown(self.walk(mean, settings), settings)
        made = self.pixels(mean, settings)
        return [
            {"input": str(name), "image": beside([given, back]), "columns": settings.columns}
            for name, given, back in zip(inputs, pixels, made, strict=True)
        ]

    def noise(self, numbers: Sequence[int], seed: int) -> Floats:
        """Latents of the prior, (N, L)."""
        return pictures.noise((self.config.latent_size,), seed, numbers)

    def walk(self, latents: Floats, settings: VAEOptions) -> Floats:
        """The latents, or what lies between them too."""
        return pictures.between(latents, settings.interpolate) if settings.interpolate else latents

    def latents(self, pixels: Bytes, settings: VAEOptions) -> tuple[Floats, Floats]:
        """Mean and log variance (N, L) of pictures (N, C, H, W)."""
        dtype = self.session.signatures["encoder"].inputs[0].dtype
        size = settings.batch_size
        parts = np.split(pixels, range(size, len(pixels), size))
        found = [
            self.session.run("encoder", {"pixel_values": self.processor.normalize(part, dtype)})[0]
            for part in told(parts, "batches of pictures read", self.progress)
        ]
        mean, logvar = (np.concatenate([each[name] for each in found])
                        for name in ("mean", "logvar"))  # fmt: skip
        return mean.astype(np.float32), logvar.astype(np.float32)

    def pixels(self, latents: Floats, settings: VAEOptions) -> Bytes:
        """Pictures (N, C, H, W) of latents."""
        [port] = self.session.signatures["decoder"].inputs
        size = settings.batch_size
        parts = np.split(latents, range(size, len(latents), size))
        found = [
            self.session.run("decoder", {"latents": part.astype(port.dtype)})[0]["pixel_values"]
            for part in told(parts, "batches of pictures made", self.progress)
        ]
        return self.processor.denormalize(np.concatenate(found))

    def sample(self, numbers: Sequence[int], settings: Any) -> Bytes:
        return self.pixels(self.noise(numbers, settings.seed), settings)

    def shown(self, latents: Floats, settings: VAEOptions) -> list[Any]:
        """A result for each of the latents."""
        columns = settings.columns or (settings.interpolate + 1 if settings.interpolate else 0)
        return [
            {"number": number, "image": pictures.plain(each), "columns": columns}
            for number, each in enumerate(self.pixels(latents, settings))
        ]

    def show(self, result: Any) -> str:
        if "image" in result:
            return super().show(result)
        return "mean " + " ".join(f"{value:.4f}" for value in result["mean"].reshape(-1))

    def encode(self, results: Sequence[Any], suffix: str) -> bytes:
        """As of other pictures; latents as .npy (N, 2, L), mean and log variance, or as JSON."""
        if results and "mean" in results[0]:
            if suffix not in (".npy", ".json", ".jsonl"):
                raise UsageError("Latents are written as .npy or .json; end the name in one.")
            if suffix == ".npy":
                both = [np.stack([r["mean"], r["logvar"]]) for r in results]
                require_equal_shapes(both)
                return pictures.saved(np.stack(both))
        return super().encode(results, suffix)

    def score(self, examples: Sequence[tuple[Any, Any]], **options: Any) -> Scores | None:
        """How many latents are in use, and with an extractor how like the samples are."""
        settings = update(self.defaults, options, "options")
        pixels = np.stack([examples[n][0] for n in range(len(examples))])
        mean, _ = self.latents(pixels, settings)
        flat = mean.reshape(len(mean), -1)
        active = {"active_units": float((flat.var(0) > ACTIVE).sum())} if len(flat) > 1 else {}
        found = super().score(examples, **options)
        if found is None:
            return Scores(active) if active else None
        return replace(found, metrics={**active, **found.metrics})

    def probe(self) -> Mapping[str, Array]:
        """The brightest quarters of eight pictures, and which of their latents is largest when
        they are encoded again, on small batches."""
        settings = replace(self.defaults, seed=1, batch_size=3)
        made = self.sample(range(8), settings)
        noise = np.random.Generator(np.random.Philox(2)).integers(0, 256, made.shape, np.uint8)
        mean, _ = self.latents(noise, settings)
        return {**self.brightest(made), "largest": np.abs(mean.reshape(8, -1)).argmax(1)}


def beside(pair: Sequence[Bytes]) -> Bytes:
    """Pictures (C, H, W) in a row."""
    return pictures.plain(np.concatenate(pair, axis=2))
