"""Pictures for autoencoders."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from cambrian.config import Recipe
from cambrian.data import Prepared
from cambrian.data.images import PROCESSOR, Examples, ImageBatches, ImageProcessor, read_split
from cambrian.errors import UsageError
from cambrian.image_pipeline import require_extractor
from cambrian_vae.config import VAEConfig
from cambrian_vae.kl_config import AutoencoderKLConfig


class KLProcessor(ImageProcessor):
    """Pixels in [-1, 1]; the reference keeps no file that says so."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        if (folder / PROCESSOR).is_file():
            return super().load(folder)
        return cls(image_size=(256, 256), num_channels=3, mean=0.5, std=0.5)


def prepare(
    config: VAEConfig,
    recipe: Recipe,
    processor: ImageProcessor | None = None,
    evaluate_only: bool = False,
) -> Prepared:
    """Pixels in [0, 1]."""
    processor = processor or ImageProcessor(
        image_size=config.image_size, num_channels=config.num_channels, crop=recipe.data.crop
    )
    return prepared(config, recipe, processor, evaluate_only)


def prepare_kl(
    config: AutoencoderKLConfig,
    recipe: Recipe,
    processor: ImageProcessor | None = None,
    evaluate_only: bool = False,
) -> Prepared:
    """Pixels in [-1, 1], of `sample_size` both ways unless the processor says otherwise.

    UsageError for channels that no picture has.
    """
    if config.in_channels not in (1, 3):
        raise UsageError(
            f"in_channels is {config.in_channels}, but pictures are grey (1) or in colour (3)."
        )
    processor = processor or KLProcessor(
        image_size=(config.sample_size, config.sample_size),
        num_channels=config.in_channels,
        mean=0.5,
        std=0.5,
        crop=recipe.data.crop,
    )
    return prepared(config, recipe, processor, evaluate_only)


def prepared(
    config: VAEConfig | AutoencoderKLConfig,
    recipe: Recipe,
    processor: ImageProcessor,
    evaluate_only: bool,
) -> Prepared:
    """Batches of pictures, whatever their labels."""
    data, train = recipe.data, recipe.train
    if data.extractor:
        require_extractor(data.extractor)
    split = read_split(data, processor, evaluate_only)
    training, validation = (
        ImageBatches(side, processor, data, train.batch_size, train.seed, shuffle=shuffle)
        if len(side)
        else None
        for side, shuffle in ((split.train, True), (split.held_out, False))
    )
    return Prepared(
        processor=processor,
        config=config,
        train=training or validation,  # pyright: ignore[reportArgumentType]
        validation=validation,
        unit="images",
        summary=split.summary,
        examples=Examples(split.held_out),
        scoring={"extractor": data.extractor} if data.extractor else {},
    )
