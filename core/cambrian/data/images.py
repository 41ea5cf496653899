"""Pictures as arrays and back: what every family of images shares."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from cambrian.data import Arrays, Processor
from cambrian.data.config import ImageData
from cambrian.data.image_sources import Images, read_images
from cambrian.errors import BrokenFile, NotFound, UsageError
from cambrian.files import read_json, write_json

if TYPE_CHECKING:
    from PIL.Image import Image

PROCESSOR = "preprocessor_config.json"
MOST_PIXELS = 1 << 26  # that a processor may ask for
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class ImageProcessor(Processor):
    """How pictures become what a model sees: (C, H, W) float32, (value / 255 - mean) / std.

    mean, std: of all channels, or one for each. crop as in ImageData. resample: Pillow's number of
    the filter that resizes, by default Lanczos'. Saved under the names that Hugging Face's image
    processors use, whose files open as well.
    """

    image_size: tuple[int, int]
    num_channels: int
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    crop: Literal["center", "none"] = "center"
    resample: int = 1

    def fit(self, image: Image) -> Bytes:
        """A picture of any kind as (C, H, W) uint8, resized if need be."""
        from PIL import Image as Pillow
        from PIL import ImageOps

        image = image.convert(self._mode)
        height, width = self.image_size
        if image.size != (width, height):
            resample = Pillow.Resampling(self.resample)
            if self.crop == "center":
                image = ImageOps.fit(image, (width, height), resample)
            else:
                image = image.resize((width, height), resample)
        return self._pixels(image)

    @property
    def _mode(self) -> str:
        return "L" if self.num_channels == 1 else "RGB"

    def _pixels(self, image: Image) -> Bytes:
        pixels = np.asarray(image, np.uint8)
        return pixels[None] if self.num_channels == 1 else pixels.transpose(2, 0, 1)

    def normalize(self, pixels: Bytes, dtype: str = "float32") -> NDArray[Any]:
        """uint8 (..., C, H, W) to what the model sees, reckoned in float32."""
        mean, std = self._statistics
        values = pixels.astype(np.float32)
        values *= (1 / (255 * std)).astype(np.float32)
        values -= (mean / std).astype(np.float32)
        return values.astype(dtype, copy=False)

    def denormalize(self, values: NDArray[Any]) -> Bytes:
        """The reverse, cut to the range of a picture and rounded."""
        mean, std = (each.astype(np.float32) for each in self._statistics)
        levels = (np.asarray(values, np.float32) * std + mean) * 255
        return np.clip(np.rint(levels), 0, 255).astype(np.uint8)

    @property
    def _statistics(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and deviation, of shape () or (C, 1, 1)."""
        mean, std = (np.array(each, np.float64) for each in (self.mean, self.std))
        return (mean[:, None, None] if mean.ndim else mean), (
            std[:, None, None] if std.ndim else std
        )

    def open(self, file: str | Path) -> Bytes:
        """Read one picture file and fit it; UsageError or BrokenFile as `read_images` has them."""
        return read_images([str(file)], self.fit, {}).pixels[0]

    def open_whole(self, file: str | Path, multiple: int) -> Bytes:
        """Read one picture file in its own size, cut in the middle to a multiple both ways."""

        def cut(image: Image) -> Bytes:
            sides = [side // multiple * multiple for side in image.size]
            if 0 in sides:
                raise UsageError(
                    f"{file} has {image.width} by {image.height} pixels; at least {multiple} both "
                    "ways are needed."
                )
            left, top = ((side - kept) // 2 for side, kept in zip(image.size, sides, strict=True))
            box = (left, top, left + sides[0], top + sides[1])
            return self._pixels(image.convert(self._mode).crop(box))

        return read_images([str(file)], cut, {}).pixels[0]

    def save(self, folder: Path) -> None:
        height, width = self.image_size
        write_json(
            folder / PROCESSOR,
            {
                "image_processor_type": "CambrianImageProcessor",
                "size": {"height": height, "width": width},
                "num_channels": self.num_channels,
                "do_center_crop": self.crop == "center",
                "do_resize": True,
                "resample": self.resample,
                "do_rescale": True,
                "rescale_factor": 1 / 255,
                "do_normalize": True,
                "image_mean": np.broadcast_to(self.mean, self.num_channels).tolist(),
                "image_std": np.broadcast_to(self.std, self.num_channels).tolist(),
            },
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        file = folder / PROCESSOR
        if not file.is_file():
            raise NotFound(f"{folder} lacks {PROCESSOR}, which says how pictures are prepared.")
        try:
            said = msgspec.convert(read_json(file), _Saved)
        except msgspec.ValidationError as error:
            raise BrokenFile(f"{file} does not describe an image processor: {error}.") from error
        if said.rescale_factor != 1 / 255 or not (said.do_rescale and said.do_normalize):
            raise BrokenFile(
                f"{file}: only pictures that are divided by 255 and normalised are supported; say "
                "so there, with a mean of 0 and a deviation of 1 to leave them as they are."
            )
        if said.do_center_crop and said.crop_size not in (None, said.size):
            raise BrokenFile(
                f"{file}: pictures that are cut after they are resized (crop_size) are not "
                "supported; set do_center_crop to false there to squeeze them instead."
            )
        height, width = (said.size,) * 2 if isinstance(said.size, int) else astuple(said.size)
        if min(height, width) < 1 or height * width > MOST_PIXELS:
            raise BrokenFile(
                f"{file}: {height} by {width} is no size of a picture; at most {MOST_PIXELS:,} "
                "pixels are allowed."
            )
        mean, std = said.statistics(file)
        return cls(
            image_size=(height, width),
            num_channels=said.num_channels or len(said.image_mean),
            mean=mean,
            std=std,
            crop="center" if said.do_center_crop and said.crop_size is None else "none",
            resample=said.resample,
        )


@dataclass(frozen=True)
class _Size:
    height: int
    width: int


@dataclass(frozen=True)
class _Saved:
    """What is read of the file. Where it is silent, Hugging Face's processors do as these defaults
    say; files of our own are only silent of crop_size."""

    size: _Size | int
    image_mean: list[float]
    image_std: list[float]
    num_channels: Literal[1, 3] | None = None
    do_center_crop: bool = False
    crop_size: _Size | int | None = None
    resample: Literal[0, 1, 2, 3, 4, 5] = 2
    do_rescale: bool = True
    do_normalize: bool = True
    rescale_factor: float = 1 / 255

    def statistics(self, file: Path) -> list[float | tuple[float, ...]]:
        """Mean and deviation, each one number if it is the same for every channel."""
        mean, std = self.image_mean, self.image_std
        channels = self.num_channels or len(mean)
        sane = len(mean) == len(std) == channels in (1, 3)
        if not (sane and all(map(math.isfinite, (*mean, *std))) and min(std) >= 1e-6):
            raise BrokenFile(
                f"{file}: image_mean and image_std must each be one finite number for every "
                "channel, 1 or 3 of them, and the deviation above 0."
            )
        return [each[0] if len({*each}) == 1 else tuple(each) for each in (mean, std)]


# -- data to train on -------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Pictures on their sides; `summary` is for the card and the logs."""

    train: Images
    held_out: Images
    summary: Mapping[str, Any]


def read_split(data: ImageData, processor: ImageProcessor, evaluate_only: bool = False) -> Split:
    """Read what `data` names.

    Without `validation`, pictures go to one side or the other by a hash of their bytes as the
    model sees them. UsageError where a side that is asked for is left empty.
    """
    from cambrian.registry import load_registry

    require_sense(data, processor)
    datasets = load_registry().datasets
    given = read_images(data.source, processor.fit, datasets)
    if data.validation:
        train = given
        same = evaluate_only and data.validation == data.source
        held_out = given if same else read_images(data.validation, processor.fit, datasets)
    else:
        ranks = np.array([_rank(picture) for picture in given.pixels], np.uint64)
        aside = ranks < np.uint64(int(data.validation_fraction * (2**64 - 1)))
        train, held_out = given.take(~aside), given.take(aside)
    where = ", ".join(data.source)
    if not len(train) and not evaluate_only:
        raise UsageError(f"There are no pictures to train on in {where}; give more data.")
    skipped = [*given.skipped, *(held_out.skipped if data.validation else ())]
    summary = {
        "sources": list(data.source),
        "validation_sources": list(data.validation),
        "examples": {"train": len(train), "validation": len(held_out)},
        "skipped": [f"{name}: {reason}" for name, reason in skipped],
        "image": {**asdict(processor)},
        "content_sha256": _digest(train, held_out),
    }
    return Split(train, held_out, summary)


def require_sense(data: ImageData, processor: ImageProcessor) -> None:
    """UsageError for settings that cannot be meant."""
    if not 0 <= data.validation_fraction < 1:
        raise UsageError(
            f"data.validation_fraction must be in [0, 1), not {data.validation_fraction}."
        )
    if not 0 <= data.shift < min(processor.image_size):
        raise UsageError(
            f"data.shift is a number of pixels less than a picture has, not {data.shift}."
        )


def _rank(picture: Bytes) -> int:
    digest = hashlib.blake2b(picture.tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _digest(*sides: Images) -> str:
    digest = hashlib.sha256()
    for side in sides:
        digest.update(repr((side.pixels.shape, side.labels)).encode())
        digest.update(side.pixels.tobytes())
    return digest.hexdigest()


@dataclass
class ImageBatches:
    """Batches of {"pixel_values" (B, C, H, W) float32[, "labels" (B,) int64]}.

    Training batches are full: row k of the run is row k of an endless series of permutations. With
    `shuffle` off, pictures come in order, once, and the last batch holds what is left; nothing is
    flipped or shifted then, and what is drawn is the same each time.
    """

    images: Images
    processor: ImageProcessor
    data: ImageData
    batch_size: int
    seed: int
    labels: NDArray[np.int64] | None = None
    shuffle: bool = True
    _orders: dict[int, NDArray[np.int64]] = field(default_factory=dict[int, NDArray[np.int64]])

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"batch_size={self.batch_size} must be at least 1.")

    def __len__(self) -> int:
        """Batches in one pass."""
        return (len(self.images) + self.batch_size - 1) // self.batch_size

    def batch(self, index: int) -> Arrays:
        """Batch number `index`; unshuffled, numbers past one pass begin again."""
        if not self.shuffle:
            index %= len(self)
        rows = self._rows(index)
        key = np.array([self.seed % 2**64, index], np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        pixels = self.images.pixels[rows]
        if self.shuffle:
            pixels = augmented(pixels, self.data, generator)
        if self.data.binarize != "no":
            pixels = binarized(pixels, self.data.binarize, generator)
        arrays: dict[str, NDArray[Any]] = {"pixel_values": self.processor.normalize(pixels)}
        if self.labels is not None:
            arrays["labels"] = self.labels[rows]
        return arrays

    def _rows(self, index: int) -> NDArray[np.int64]:
        first, count = index * self.batch_size, len(self.images)
        if not self.shuffle:
            return np.arange(first, min(first + self.batch_size, count))
        last = first + self.batch_size
        epochs = range(first // count, (last - 1) // count + 1)
        return np.concatenate(
            [self._order(e)[max(0, first - e * count) : last - e * count] for e in epochs]
        )

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._orders:
            # The epochs' own draws have keys of their own: a batch's number is never that large.
            key = np.array([self.seed % 2**64, 2**63 + epoch], np.uint64)
            order = np.random.Generator(np.random.Philox(key=key)).permutation(len(self.images))
            kept = {e: o for e, o in self._orders.items() if e >= epoch - 1}
            self._orders = {**kept, epoch: order}
        return self._orders[epoch]


def augmented(pixels: Bytes, data: ImageData, generator: np.random.Generator) -> Bytes:
    """Pictures (B, C, H, W), each perhaps mirrored and moved."""
    if data.flip:
        mirrored = generator.random(len(pixels)) < 0.5
        pixels = np.where(mirrored[:, None, None, None], pixels[..., ::-1], pixels)
    if data.shift:
        height, width = pixels.shape[2:]
        moves = generator.integers(-data.shift, data.shift + 1, (2, len(pixels), 1))
        rows = np.clip(np.arange(height) + moves[0], 0, height - 1)
        columns = np.clip(np.arange(width) + moves[1], 0, width - 1)
        picture = np.arange(len(pixels))[:, None, None]
        channels_last = pixels.transpose(0, 2, 3, 1)
        moved = channels_last[picture, rows[:, :, None], columns[:, None, :]]
        pixels = moved.transpose(0, 3, 1, 2)
    return pixels


def binarized(
    pixels: Bytes, how: Literal["threshold", "sample"], generator: np.random.Generator
) -> Bytes:
    """Pictures of 0 and 255 alone; "sample" takes a value of k for white k times in 255."""
    limit = 127 if how == "threshold" else generator.integers(0, 255, pixels.shape, np.uint8)
    return (pixels > limit).view(np.uint8) * np.uint8(255)


class Examples(Sequence[tuple[Bytes, str | None]]):
    """Held-out pictures (C, H, W) uint8 with their labels, as `Pipeline.score` is given them."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self.images):
            raise IndexError(index)
        labels = self.images.labels
        return self.images.pixels[index], None if labels is None else labels[index]
