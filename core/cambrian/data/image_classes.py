"""Pictures and their classes, and the data of every classifier of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cambrian.config import Recipe
from cambrian.data import Prepared
from cambrian.data.image_sources import Images
from cambrian.data.images import Examples, ImageBatches, ImageProcessor, read_split
from cambrian.errors import CambrianError, UsageError


def prepare(
    config: Any,
    recipe: Recipe,
    processor: ImageProcessor | None = None,
    evaluate_only: bool = False,
) -> Prepared:
    """Batches of "pixel_values" (B, C, H, W) and "labels" (B,), from an ImageData.

    The config has `image_size` (a square's side, or height and width), `num_channels` and
    `id2label`; as long as that is its class's default, it becomes the names that the data has.
    UsageError where all pictures are of one class.
    """
    data, train = recipe.data, recipe.train
    processor = fitting(processor, config, data.crop)
    split = read_split(data, processor, evaluate_only)
    if config.id2label == type(config)().id2label and not evaluate_only:
        names = class_names(split.train)
        if len(names) < 2:
            raise UsageError(f"All pictures are '{names['0']}'; there is nothing to tell apart.")
        config = replace(config, id2label=names)

    def batches(side: str, shuffle: bool) -> ImageBatches | None:
        images = getattr(split, side)
        if not len(images):
            return None
        labels = class_numbers(images, config.id2label)
        return ImageBatches(images, processor, data, train.batch_size, train.seed, labels, shuffle)

    training, validation = batches("train", True), batches("held_out", False)
    return Prepared(
        processor=processor,
        config=config,
        train=training or validation,  # pyright: ignore[reportArgumentType]
        validation=validation,
        unit="images",
        summary=split.summary,
        examples=Examples(split.held_out),
    )


def fitting(
    processor: ImageProcessor | None, config: Any, crop: Literal["center", "none"]
) -> ImageProcessor:
    """A new processor, which brings pixels to [-1, 1]; or a base's, for pictures of the config's
    size. UsageError where that one's are grey and the config's in colour, or the reverse."""
    side = config.image_size
    size = (side, side) if isinstance(side, int) else side
    channels = config.num_channels
    if processor is None:
        return ImageProcessor(image_size=size, num_channels=channels, mean=0.5, std=0.5, crop=crop)
    if processor.num_channels != channels:
        raise UsageError(
            f"Pictures are prepared with {processor.num_channels} channels, but num_channels is "
            f"{channels}; leave it as the base has it."
        )
    return replace(processor, image_size=size)


def require_labels(images: Images) -> tuple[str, ...]:
    """The labels; UsageError where there are none."""
    if images.labels is None:
        raise UsageError(
            "The pictures have no labels; give a folder with a folder for each class, IDX files "
            "with their labels, or .npz or .parquet with labels."
        )
    return images.labels


def class_names(images: Images) -> dict[str, str]:
    """The labels by number, "0" to "n - 1", as config.json has them; numbers in their order.

    UsageError where there are none.
    """
    names = set(require_labels(images))
    numeric = all(name.isdecimal() for name in names)
    ordered = sorted(names, key=lambda name: (int(name), name)) if numeric else sorted(names)
    return {str(number): name for number, name in enumerate(ordered)}


def class_numbers(images: Images, id2label: Mapping[str, str]) -> NDArray[np.int64]:
    """The number of each picture's class; CambrianError for a label that the model lacks."""
    numbers = {name: int(number) for number, name in id2label.items()}
    labels = require_labels(images)
    if strange := sorted(set(labels) - numbers.keys()):
        raise CambrianError(
            f"The pictures have the label '{strange[0]}', which the model does not know; it knows "
            f"{', '.join(list(numbers)[:10])}."
        )
    return np.array([numbers[label] for label in labels], np.int64)
