"""Pictures from numbered noise, on any engine and in numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cambrian import pictures
from cambrian.config import update
from cambrian.errors import UsageError, nearest
from cambrian.image_pipeline import Bytes, ImageOptions, ImagePipeline
from cambrian.progress import told
from cambrian.runtime import Array
from cambrian.scores import Scores
from cambrian_gan.config import GANConfig


@dataclass(frozen=True, kw_only=True)
class GANOptions(ImageOptions):
    """label: the class to make, of a conditional model; "" for all in turn."""

    label: str | int = ""


class GANPipeline(ImagePipeline):
    """{"number", "image"[, "label"]} for each picture; it takes no inputs."""

    options = GANOptions
    config: GANConfig

    def __call__(self, inputs: Sequence[Any], **options: Any) -> list[Any]:
        """`count` pictures, or the walk between their noise; UsageError for any input."""
        settings = update(self.defaults, options, "options")
        if inputs:
            raise UsageError(
                f"This model makes pictures of noise and takes no input such as '{inputs[0]}'; say "
                "how many with --count and which with --seed."
            )
        latents = pictures.noise((self.config.latent_size,), settings.seed, range(settings.count))
        columns, labels = settings.columns, self.classes(range(settings.count), str(settings.label))
        if settings.interpolate:
            columns = columns or settings.interpolate + 1
            latents = pictures.between(latents, settings.interpolate)
            repeats = [settings.interpolate] * (settings.count - 1) + [1]
            labels = None if labels is None else np.repeat(labels, repeats)
        made = self.pixels(latents, labels, settings.batch_size)
        results: list[Any] = []
        for number, each in enumerate(made):
            label = {} if labels is None else {"label": self.config.labels[labels[number]]}
            results.append(
                {"number": number, **label, "image": pictures.plain(each), "columns": columns}
            )
        return results

    def classes(self, numbers: Sequence[int], label: str) -> NDArray[np.int64] | None:
        """The classes of numbered pictures; None of an unconditional model."""
        known = self.config.labels
        if label and label not in known:
            what = f"only {', '.join(known)}" if known else "none at all"
            raise UsageError(f"The model knows no class '{label}', {what}.{nearest(label, known)}")
        if not known:
            return None
        if label:
            return np.full(len(numbers), known.index(label), np.int64)
        return np.array(numbers, np.int64) % len(known)

    def pixels(
        self, latents: NDArray[np.float32], labels: NDArray[np.int64] | None, batch_size: int
    ) -> Bytes:
        """Pictures (N, C, H, W) of noise (N, Z) and classes (N,)."""
        dtype = self.session.signatures["generator"].inputs[0].dtype
        found: list[Array] = []
        starts = range(0, len(latents), batch_size)
        for start in told(starts, "batches of pictures made", self.progress):
            rows = slice(start, start + batch_size)
            inputs: dict[str, Array] = {"latents": latents[rows].astype(dtype)}
            if labels is not None:
                inputs["labels"] = labels[rows]
            found.append(self.session.run("generator", inputs)[0]["pixel_values"])
        return self.processor.denormalize(np.concatenate(found))

    def sample(self, numbers: Sequence[int], settings: Any) -> Bytes:
        latents = pictures.noise((self.config.latent_size,), settings.seed, numbers)
        return self.pixels(latents, self.classes(numbers, str(settings.label)), settings.batch_size)

    def score(self, examples: Sequence[tuple[Any, Any]], **options: Any) -> Scores | None:
        """As of other pictures; UsageError without an extractor, for there is no other figure."""
        found = super().score(examples, **options)
        if found is None:
            raise UsageError(
                "A GAN has no loss that says how good it is; name a classifier whose features are "
                "compared: --option extractor=FOLDER (cambrian train cnn makes one)."
            )
        return found

    def probe(self) -> Mapping[str, Array]:
        """The brightest quarters of eight pictures, on small batches."""
        return self.brightest(self.sample(range(8), replace(self.defaults, seed=1, batch_size=3)))
