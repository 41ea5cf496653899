"""Pictures for adversarial training."""

from __future__ import annotations

from dataclasses import replace

from cambrian.config import Recipe
from cambrian.data import Prepared
from cambrian.data.image_classes import class_names, class_numbers
from cambrian.data.images import Examples, ImageBatches, ImageProcessor, read_split
from cambrian.errors import UsageError
from cambrian.image_pipeline import require_extractor
from cambrian_gan.config import GANConfig


def prepare(
    config: GANConfig,
    recipe: Recipe,
    processor: ImageProcessor | None = None,
    evaluate_only: bool = False,
) -> Prepared:
    """Pixels in [-1, 1], with classes for a conditional model. There is no held-out loss: what is
    held out (or else all) is what made pictures are compared with.

    UsageError for settings that cannot work.
    """
    data, train = recipe.data, recipe.train
    if train.batch_size < 2:
        raise UsageError("A GAN compares the pictures of a batch; batch_size must be at least 2.")
    if data.extractor:
        require_extractor(data.extractor)
    elif train.score:
        raise UsageError("train.score needs a classifier's folder: --set extractor=FOLDER.")
    processor = processor or ImageProcessor(
        image_size=config.image_size, num_channels=config.num_channels, mean=0.5, std=0.5,
        crop=data.crop,
    )  # fmt: skip
    split = read_split(data, processor, evaluate_only)
    if config.conditional and not config.id2label and not evaluate_only:
        config = replace(config, id2label=class_names(split.train))
    images = split.train if len(split.train) else split.held_out
    labels = class_numbers(images, config.id2label) if config.id2label else None
    return Prepared(
        processor=processor,
        config=config,
        train=ImageBatches(images, processor, data, train.batch_size, train.seed, labels),
        validation=None,
        unit="images",
        summary=split.summary,
        examples=Examples(split.held_out if len(split.held_out) else split.train),
        scoring={"extractor": data.extractor} if data.extractor else {},
    )
