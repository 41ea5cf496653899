"""Pictures to classes, on any engine and in numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cambrian.config import update
from cambrian.data.images import ImageProcessor
from cambrian.generation.sampling import probabilities
from cambrian.image_pipeline import FeaturePipeline
from cambrian.runtime import Array
from cambrian.workload import Sizes, Workload
from cambrian_cnn.config import CNNConfig

if TYPE_CHECKING:
    from cambrian.scores import Scores


@dataclass(frozen=True, kw_only=True)
class ClassificationOptions:
    """batch_size: how many pictures the engine sees at once."""

    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}")


class ImageClassification(FeaturePipeline):
    """The class of each picture file: {"input", "label", "score", "scores"}."""

    options = ClassificationOptions
    processor: ImageProcessor
    config: CNNConfig

    def __call__(self, inputs: Sequence[Any], **options: Any) -> list[Any]:
        """One result for each file's name; UsageError or BrokenFile for what is no picture."""
        settings = update(self.defaults, options, "options")
        pixels = np.stack([self.processor.open(name) for name in inputs])
        logits, _ = self.compute(pixels, settings.batch_size)
        return [
            {
                "input": str(name),
                "label": self.config.labels[int(row.argmax())],
                "score": float(row.max()),
                "scores": dict(zip(self.config.labels, map(float, row), strict=True)),
            }
            for name, row in zip(inputs, probabilities(logits), strict=True)
        ]

    @property
    def labels(self) -> tuple[str, ...]:
        return self.config.labels

    def show(self, result: Any) -> str:
        return f"{result['label']}  {result['score']:.4f}"

    def compute(self, pixels: NDArray[np.uint8], batch_size: int = 64) -> tuple[Any, Any]:
        """Logits (N, K) and features (N, F) of pictures (N, C, H, W) uint8."""
        dtype = self.session.signatures["model"].inputs[0].dtype
        found = [
            self.session.run("model", {"pixel_values": self.processor.normalize(part, dtype)})[0]
            for part in np.split(pixels, range(batch_size, len(pixels), batch_size))
        ]
        logits, features = (
            np.concatenate([each[name] for each in found]) for name in ("logits", "features")
        )
        return logits, features

    def score(self, examples: Sequence[tuple[Any, Any]], **options: Any) -> Scores | None:
        """Accuracy, macro F1 and the confusion matrix."""
        from cambrian.scores import classification

        settings = update(self.defaults, options, "options")
        pixels, labels = zip(*(examples[n] for n in range(len(examples))), strict=True)
        logits, _ = self.compute(np.stack(pixels), settings.batch_size)
        predicted = [self.config.labels[n] for n in logits.argmax(-1)]
        return classification(self.config.labels, labels, predicted)

    def workload(self, sizes: Sizes) -> Workload:
        """Pictures of noise through the graph once."""
        pixels = self.random_pixels(sizes.batch)
        return Workload(
            unit="pictures",
            count=sizes.batch,
            run=lambda: iter([self.compute(pixels, sizes.batch)[0]]),
        )

    def probe(self) -> Mapping[str, Array]:
        """The classes of eight pictures of noise."""
        logits, _ = self.compute(self.random_pixels(8), 3)
        return {"classes": logits.argmax(-1).astype(np.int64)}

    def random_pixels(self, count: int) -> NDArray[np.uint8]:
        """Pictures of noise, the same in every call."""
        rng = np.random.Generator(np.random.Philox(0))
        shape = (count, self.config.num_channels, *self.config.image_size)
        return rng.integers(0, 256, shape, np.uint8)
