"""Labelled pictures for the classifier."""

from __future__ import annotations

from dataclasses import replace

from cambrian.config import Recipe
from cambrian.data import Prepared
from cambrian.data.images import (
    Examples,
    ImageBatches,
    ImageProcessor,
    class_names,
    class_numbers,
    read_split,
)
from cambrian.errors import UsageError
from cambrian_cnn.config import CNNConfig, default_labels


def prepare(
    config: CNNConfig,
    recipe: Recipe,
    processor: ImageProcessor | None = None,
    evaluate_only: bool = False,
) -> Prepared:
    """Pictures and their classes, which the config takes from the data where it is a new model."""
    data, train = recipe.data, recipe.train
    if processor is None:
        processor = ImageProcessor(
            image_size=config.image_size, num_channels=config.num_channels, mean=0.5, std=0.5,
            crop=data.crop,
        )  # fmt: skip
    split = read_split(data, processor, evaluate_only)
    if config.id2label == default_labels() and not evaluate_only:
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
