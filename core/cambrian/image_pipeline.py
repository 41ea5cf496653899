"""What pipelines of pictures share: those that make them (numbered noise, contact sheets, and their
measure), and the one that tells their classes."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cambrian import fidelity, pictures
from cambrian.config import update
from cambrian.data.images import ImageProcessor
from cambrian.errors import BrokenFile, NotFound, UsageError
from cambrian.files import sha256
from cambrian.generation.sampling import probabilities
from cambrian.pipeline import Pipeline
from cambrian.progress import Progress, told, untold
from cambrian.runtime import Array
from cambrian.scores import Scores, classification
from cambrian.workload import Sizes, Workload

Bytes = NDArray[np.uint8]
WEIGHTS = (".pth", ".pt", ".bin", ".safetensors")  # how files of them end


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """count, seed: how many pictures, and of which noise; number n of a seed is always the same.
    interpolate: so many steps from each picture's latents to the next one's; 0 for none.
    columns: of a contact sheet; 0 for about as many as rows.
    batch_size: how many pictures the engine sees at once.
    extractor: of `cambrian eval`: what describes the pictures that are compared, a classifier's
        folder or, for FID, the file of Inception's weights.
    samples: how many pictures are made for that; 0 for as many as there are real ones.
    """

    count: int = 16
    seed: int = 0
    interpolate: int = 0
    columns: int = 0
    batch_size: int = 64
    extractor: str = ""
    samples: int = 0

    def __post_init__(self) -> None:
        for name in ("count", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("seed", "interpolate", "columns", "samples"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} cannot be negative; it is {getattr(self, name)}")


class ImagePipeline(Pipeline):
    """Makes pictures. A result holds its "image", (H, W) or (H, W, 3) uint8."""

    options = ImageOptions
    inputless: ClassVar[bool] = True
    suffixes: ClassVar[tuple[str, ...]] = (
        *pictures.FORMATS,
        *pictures.MOVING,
        ".npy",
        ".json",
        ".jsonl",
    )
    processor: ImageProcessor

    @abstractmethod
    def sample(self, numbers: Sequence[int], settings: Any) -> Bytes:
        """The pictures (N, C, H, W) of the noise with these numbers."""

    def show(self, result: Any) -> str:
        """A sketch of the picture in letters."""
        return pictures.sketch(result["image"])

    def encode(self, results: Sequence[Any], suffix: str) -> bytes:
        """A contact sheet (.png, .webp, .jpg), a moving picture (.gif), the pixels (.npy), or JSON
        lines with each picture as PNG in base64."""
        if suffix in (".json", ".jsonl"):
            return super().encode([pictures.jsonable(result) for result in results], suffix)
        images = [result["image"] for result in results]
        require_equal_shapes(images)
        if suffix == ".npy":
            return pictures.saved(np.stack(images))
        if suffix in pictures.MOVING:
            return pictures.animated(images)
        columns = results[0].get("columns", 0)
        return pictures.encoded(pictures.sheet(images, columns), suffix)

    def preview(self) -> bytes | None:
        """A contact sheet of 64 pictures, of the same noise each time."""
        settings = update(self.defaults, {"seed": 0}, "options")
        made = self.sample(range(64), settings)
        return pictures.encoded(pictures.sheet([pictures.plain(each) for each in made]), ".png")

    def score(self, examples: Sequence[tuple[Any, Any]], **options: Any) -> Scores | None:
        """Distances of made pictures to the examples, over the extractor's features.

        Named after the extractor: "frechet_distance_cnn" is no FID, which is defined over features
        of Inception ("frechet_distance_inception").
        """
        settings = update(self.defaults, options, "options")
        if not settings.extractor:
            return None
        real = np.stack([examples[n][0] for n in range(len(examples))])
        made = self.sample(range(settings.samples or len(real)), settings)
        return compared(real, made, settings.extractor, self.device, self.progress)

    def workload(self, sizes: Sizes) -> Workload:
        """Pictures of the same noise each time, from the noise to the pixels."""
        settings = update(self.defaults, {"batch_size": sizes.batch}, "options")
        return Workload(
            unit="pictures",
            count=sizes.batch,
            run=lambda: iter([self.sample(range(sizes.batch), settings)]),
        )

    @property
    def device(self) -> str:
        """Where the engine computes: "cuda" or "cpu"."""
        return "cuda" if "cuda" in self.session.provider.lower() else "cpu"

    def brightest(self, pixels: Bytes) -> Mapping[str, Array]:
        """Of each picture, which quarter of it is the brightest: what a probe asks for."""
        height, width = (side // 2 for side in pixels.shape[2:])
        quarters = [
            part.mean(axis=(1, 2, 3), dtype=np.float64)
            for half in np.split(pixels, [height], axis=2)
            for part in np.split(half, [width], axis=3)
        ]
        return {"brightest": np.stack(quarters, 1).argmax(1).astype(np.int64)}


def require_equal_shapes(arrays: Sequence[NDArray[Any]]) -> None:
    """UsageError for arrays that cannot be one."""
    if len({array.shape for array in arrays}) > 1:
        raise UsageError("Pictures of unequal size make no one file; run them one by one.")


def require_extractor(extractor: str) -> None:
    """Before anything is spent: UsageError or NotFound if it is no classifier of pictures,
    BrokenFile for a file that does not hold Inception's weights."""
    file = Path(extractor).expanduser()
    if file.is_file():
        from cambrian.inception import require_inception

        require_inception(file)
        return
    if file.suffix in WEIGHTS and not file.is_dir():
        raise NotFound(
            f"There is no file {extractor} with Inception's weights; say where it is, or name a "
            "classifier's folder."
        )
    from cambrian.loading import load

    pipeline = load(extractor, device="cpu")
    pipeline.session.close()
    if not isinstance(pipeline, ImageClassification):
        raise UsageError(
            f"{extractor} is no classifier of pictures; train one: cambrian train cnn -o FOLDER."
        )


@dataclass(frozen=True, kw_only=True)
class ClassificationOptions:
    """batch_size: how many pictures the engine sees at once."""

    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}")


class ImageClassification(Pipeline):
    """The class of each picture file: {"input", "label", "score", "scores"}.

    The config has `id2label`. The graph "model" takes "pixel_values" (B, C, H, W) to "logits"
    (B, K) and "features" (B, F), over which sets of pictures can be compared.
    """

    options = ClassificationOptions
    processor: ImageProcessor

    def __call__(self, inputs: Sequence[Any], **options: Any) -> list[Any]:
        """One result for each file's name; UsageError or BrokenFile for what is no picture."""
        settings = update(self.defaults, options, "options")
        pixels = np.stack([self.processor.open(name) for name in inputs])
        logits, _ = self.compute(pixels, settings.batch_size)
        return [
            {
                "input": str(name),
                "label": self.labels[int(row.argmax())],
                "score": float(row.max()),
                "scores": dict(zip(self.labels, map(float, row), strict=True)),
            }
            for name, row in zip(inputs, probabilities(logits), strict=True)
        ]

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes' names, in order."""
        names = self.config.id2label
        return tuple(names[str(number)] for number in range(len(names)))

    def show(self, result: Any) -> str:
        return f"{result['label']}  {result['score']:.4f}"

    def compute(self, pixels: Bytes, batch_size: int = 64) -> tuple[Any, Any]:
        """Logits (N, K) and features (N, F) of pictures (N, C, H, W) uint8."""
        dtype = self.session.signatures["model"].inputs[0].dtype
        parts = np.split(pixels, range(batch_size, len(pixels), batch_size))
        found = [
            self.session.run("model", {"pixel_values": self.processor.normalize(part, dtype)})[0]
            for part in told(parts, "batches of pictures", self.progress)
        ]
        logits, features = (
            np.concatenate([each[name] for each in found]) for name in ("logits", "features")
        )
        return logits, features

    def score(self, examples: Sequence[tuple[Any, Any]], **options: Any) -> Scores | None:
        """Accuracy, macro F1 and the confusion matrix."""
        settings = update(self.defaults, options, "options")
        pixels, labels = zip(*(examples[n] for n in range(len(examples))), strict=True)
        logits, _ = self.compute(np.stack(pixels), settings.batch_size)
        predicted = [self.labels[n] for n in logits.argmax(-1)]
        return classification(self.labels, labels, predicted)

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

    def random_pixels(self, count: int) -> Bytes:
        """Pictures of noise, the same in every call."""
        rng = np.random.Generator(np.random.Philox(0))
        shape = (count, self.processor.num_channels, *self.processor.image_size)
        return rng.integers(0, 256, shape, np.uint8)


class _Described(NamedTuple):
    """Real and made pictures by an extractor: its name and its weights' sha256, whether FID is
    defined over it; the features (N, F) of either, and the filter that resized them; and of the
    made ones each class's share, where classes have names."""

    name: str
    sha256: str
    is_fid: bool
    features: tuple[Any, Any]
    resizer: str
    classes: Mapping[str, float]


def compared(
    real: Bytes,
    made: Bytes,
    extractor: str,
    device: str = "auto",
    progress: Progress = untold,
) -> Scores:
    """Fidelity of made pictures (N, C, H, W), and which classes a classifier sees in them.

    `device` is Inception's, "cpu" or, where there is CUDA, "auto" or "cuda"; a classifier is small
    and stays on the CPU.
    "is_fid" among the facts says whether the Frechet distance is FID: over the features of
    Inception with the published weights. Errors as of `require_extractor`.
    """
    require_extractor(extractor)
    file = Path(extractor).expanduser()
    found = (
        _by_inception(real, made, file, device, progress)
        if file.is_file()
        else _by_classifier(real, made, extractor, progress)
    )
    first, second = found.features
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise BrokenFile(
            f"{extractor} gives features that are no numbers; its weights are damaged."
        )
    precision, recall = fidelity.precision_recall(first, second)
    shares = found.classes.values()
    metrics = {
        f"frechet_distance_{found.name}": fidelity.frechet_distance(first, second),
        f"kernel_distance_{found.name}": fidelity.kernel_distance(first, second),
        f"precision_{found.name}": precision,
        f"recall_{found.name}": recall,
        **({"rarest_class": min(shares), "commonest_class": max(shares)} if shares else {}),
    }
    facts = {
        "extractor": extractor,
        "extractor_sha256": found.sha256,
        "is_fid": found.is_fid,
        "resizer": found.resizer,
        "real": len(first),
        "made": len(second),
        **({"classes": found.classes} if found.classes else {}),
    }
    return Scores(metrics, facts=facts)


def _by_classifier(real: Bytes, made: Bytes, folder: str, progress: Progress) -> _Described:
    """Pictures (N, C, H, W) as a classifier's folder describes them."""
    from cambrian.loading import load, weights_of

    pipeline: Any = load(folder, device="cpu")
    pipeline.progress = progress
    try:
        fit = pipeline.processor.fit
        sides = [
            np.stack([fit(pictures.opened(pictures.plain(each))) for each in side])
            for side in (real, made)
        ]
        (_, first), (logits, second) = (pipeline.compute(side) for side in sides)
    finally:
        pipeline.session.close()
    name, digest = weights_of(folder)
    resizer = "lanczos" if sides[1].shape != made.shape else "none"
    counts = np.bincount(logits.argmax(-1), minlength=logits.shape[1])
    shares = dict(zip(pipeline.labels, (counts / len(logits)).tolist(), strict=True))
    return _Described(name, digest, False, (first, second), resizer, shares)


def _by_inception(
    real: Bytes, made: Bytes, file: Path, device: str, progress: Progress
) -> _Described:
    """Pictures (N, C, H, W) as Inception describes them, by the weights in a file."""
    from cambrian.inception import PUBLISHED, SIDE, open_inception

    network, digest = open_inception(file, device), sha256(file)
    resizer = "none" if made.shape[2:] == (SIDE, SIDE) else "bilinear"
    known = (digest, device, real.shape, hashlib.sha256(real.tobytes()).digest())
    described = _real.get(known)
    if described is None:
        described = network.describe(real, progress)
        _real.clear()
        _real[known] = described
    features = described, network.describe(made, progress)
    return _Described("inception", digest, digest == PUBLISHED, features, resizer, {})


# Inception's features of the latest real pictures: a run that is measured again and again is always
# measured against the same ones, and to describe them takes minutes on a CPU.
_real: dict[tuple[Any, ...], Any] = {}
