"""Classes of pictures: their numbers, and a classifier's data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cambrian.config import Recipe, TrainConfig
from cambrian.data.config import ImageData
from cambrian.data.image_classes import class_names, class_numbers, prepare
from cambrian.data.image_sources import Images
from cambrian.data.images import ImageProcessor
from cambrian.errors import CambrianError, UsageError

UNLABELLED = Images(np.zeros((2, 1, 4, 4), np.uint8), None)


@dataclass(frozen=True)
class Config:
    """What is read of a classifier's config."""

    image_size: int | tuple[int, int] = 4
    num_channels: int = 1
    id2label: dict[str, str] = field(default_factory=lambda: {"0": "LABEL_0", "1": "LABEL_1"})


def labelled(*labels: str) -> Images:
    return Images(np.zeros((len(labels), 1, 4, 4), np.uint8), labels)


def data(tmp_path: Path, *labels: str) -> Recipe:
    """A recipe for pictures of 6 by 6, as many of each label as it takes for both sides."""
    names = np.array(labels * 20)
    pixels = np.random.default_rng(0).integers(0, 256, (len(names), 6, 6), np.uint8)
    np.savez(tmp_path / "data.npz", images=pixels, labels=names)
    source = ImageData(source=(str(tmp_path / "data.npz"),), validation_fraction=0.3)
    return Recipe(train=TrainConfig(batch_size=5), data=source)


def test_classes_are_numbered_in_order() -> None:
    assert class_names(labelled("10", "9", "1", "9")) == {"0": "1", "1": "9", "2": "10"}
    assert class_names(labelled("b", "10", "9")) == {"0": "10", "1": "9", "2": "b"}
    with pytest.raises(UsageError, match="have no labels"):
        class_names(UNLABELLED)


def test_class_numbers_and_a_strange_label() -> None:
    names = {"0": "ant", "1": "bee"}
    assert class_numbers(labelled("bee", "ant", "bee"), names).tolist() == [1, 0, 1]
    with pytest.raises(UsageError, match="have no labels"):
        class_numbers(UNLABELLED, names)
    with pytest.raises(CambrianError, match="'cat', which the model does not know; it knows ant"):
        class_numbers(labelled("ant", "cat"), names)


def test_a_new_model_takes_its_classes_from_the_data(tmp_path: Path) -> None:
    found = prepare(Config(), data(tmp_path, "bee", "ant"))
    assert found.config == Config(id2label={"0": "ant", "1": "bee"})
    assert found.processor == ImageProcessor(image_size=(4, 4), num_channels=1, mean=0.5, std=0.5)
    batch = found.train.batch(0)
    assert batch["pixel_values"].shape == (5, 1, 4, 4) and batch["labels"].shape == (5,)
    pixels, label = found.examples[0]
    assert pixels.shape == (1, 4, 4) and label in ("ant", "bee")


def test_a_model_keeps_the_classes_that_it_knows(tmp_path: Path) -> None:
    knows = Config(id2label={"0": "bee", "1": "cat", "2": "ant"})
    found = prepare(knows, data(tmp_path, "bee", "ant"))
    assert found.config == knows and {*found.train.batch(0)["labels"].tolist()} == {0, 2}
    with pytest.raises(CambrianError, match="'dog', which the model does not know"):
        prepare(knows, data(tmp_path, "bee", "dog"))
    with pytest.raises(UsageError, match="All pictures are 'bee'"):
        prepare(Config(), data(tmp_path, "bee"))


def test_a_bases_pictures_get_the_size_of_the_new_model(tmp_path: Path) -> None:
    base: Any = ImageProcessor(image_size=(6, 6), num_channels=1, mean=0.3, resample=2)
    recipe = data(tmp_path, "bee", "ant")
    found = prepare(Config(image_size=(2, 3)), recipe, base)
    assert found.processor == dataclasses.replace(base, image_size=(2, 3))
    assert found.train.batch(0)["pixel_values"].shape == (5, 1, 2, 3)
    with pytest.raises(UsageError, match="with 1 channels, but num_channels is 3"):
        prepare(Config(num_channels=3), recipe, base)
