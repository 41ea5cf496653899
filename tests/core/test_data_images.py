"""Pictures as arrays and back, their split, and their batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cambrian.data.config import ImageData
from cambrian.data.image_sources import Images
from cambrian.data.images import (
    PROCESSOR,
    Bytes,
    Examples,
    ImageBatches,
    ImageProcessor,
    augmented,
    binarized,
    read_split,
)
from cambrian.errors import BrokenFile, CambrianError, NotFound, UsageError

LEVELS = np.arange(256, dtype=np.uint8)
GREY = ImageProcessor(image_size=(4, 5), num_channels=1)


def numbered(count: int, shape: tuple[int, int, int] = (1, 4, 5)) -> Images:
    """Pictures that all differ; the first pixel is the picture's number."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(count)
    return Images(pixels, None)


def batches(count: int, size: int, seed: int = 0, **changes: Any) -> ImageBatches:
    data = ImageData(**{k: v for k, v in changes.items() if k != "shuffle"})
    shuffle = changes.get("shuffle", True)
    return ImageBatches(numbered(count), GREY, data, size, seed, shuffle=shuffle)


def rows(made: ImageBatches, index: int) -> list[int]:
    """Which pictures a batch holds."""
    return [*GREY.denormalize(made.batch(index)["pixel_values"])[:, 0, 0, 0].tolist()]


# -- processor --------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "crop"), [(1, "center"), (3, "none")])
def test_a_processor_is_saved_and_read_back(channels: int, crop: Any, tmp_path: Path) -> None:
    made = ImageProcessor(
        image_size=(6, 9), num_channels=channels, mean=0.5, std=0.25, crop=crop
    )  # fmt: skip
    made.save(tmp_path)
    assert ImageProcessor.load(tmp_path) == made
    said = json.loads((tmp_path / PROCESSOR).read_text())
    assert said["size"] == {"height": 6, "width": 9} and said["image_mean"] == [0.5] * channels


HUB = {  # google/vit-base-patch16-224-in21k's, but for the sizes and figures
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.5, 0.25, 0.5],
    "image_std": [0.5, 0.5, 0.125],
    "size": 6,
}


def test_a_description_from_the_hub_is_read(tmp_path: Path) -> None:
    (tmp_path / PROCESSOR).write_text(json.dumps(HUB))
    processor = ImageProcessor.load(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    image = Image.fromarray(pixels)
    whole = np.asarray(image.resize((6, 6), Image.Resampling.BILINEAR), np.float32) / 255
    want = (whole - HUB["image_mean"]) / np.array(HUB["image_std"])
    fitted = processor.fit(image)
    seen = processor.normalize(np.stack([fitted, fitted]))[1]
    np.testing.assert_allclose(seen.transpose(1, 2, 0), want, rtol=0, atol=1e-6)
    assert np.array_equal(processor.denormalize(seen), fitted)
    processor.save(tmp_path)
    assert ImageProcessor.load(tmp_path) == processor


def test_resizing_to_what_is_then_not_cut_squeezes_the_whole(tmp_path: Path) -> None:
    file = tmp_path / PROCESSOR
    file.write_text(json.dumps({**HUB, "do_center_crop": True, "crop_size": 6}))
    assert ImageProcessor.load(tmp_path).crop == "none"
    file.write_text(json.dumps({**HUB, "do_center_crop": True, "crop_size": 5}))
    with pytest.raises(BrokenFile, match="cut after they are resized"):
        ImageProcessor.load(tmp_path)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.5)])
def test_every_level_comes_back(mean: float, std: float) -> None:
    processor = ImageProcessor(image_size=(1, 256), num_channels=1, mean=mean, std=std)
    seen = processor.normalize(LEVELS)
    assert seen.dtype == np.float32
    np.testing.assert_allclose(seen, (LEVELS / 255 - mean) / std, rtol=0, atol=2e-7)
    assert seen[0] == -mean / std and seen[-1] == pytest.approx((1 - mean) / std, abs=2e-7)
    assert np.array_equal(processor.denormalize(seen), LEVELS)
    beyond = np.array([-9.0, 9.0], np.float16)
    assert processor.denormalize(beyond).tolist() == [0, 255]


def test_fit_crops_the_middle_or_squeezes_the_whole() -> None:
    wide = np.zeros((4, 12), np.uint8)
    wide[:, 4:8] = 200
    image = Image.fromarray(wide)
    cropped = ImageProcessor(image_size=(4, 4), num_channels=1).fit(image)
    assert cropped.shape == (1, 4, 4) and (cropped == 200).all()
    squeezed = ImageProcessor(image_size=(4, 4), num_channels=1, crop="none").fit(image)
    assert squeezed[0, :, 0].max() < 30 and squeezed.min() < 30 < 120 < squeezed.max()
    colour = ImageProcessor(image_size=(4, 12), num_channels=3).fit(image)
    assert np.array_equal(colour, np.stack([wide] * 3))  # of its size, it is not resized


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0},
        {"size": "28"},
        {"resample": 6},
        {"size": {"height": "4", "width": 4}},
        {"size": {"height": 4}},
        {"size": {"height": 0, "width": 4}},
        {"size": {"height": 10**5, "width": 10**5}},
        {"num_channels": "one"},
        {"num_channels": 2},
        {"do_center_crop": None},
        {"image_mean": []},
        {"image_mean": [0.1, 0.2]},
        {"image_std": [0.0]},
        {"image_std": [-1.0]},
        {"image_std": [float("nan")]},
        {"image_mean": [float("nan")]},
        {"do_rescale": False},
        {"do_normalize": False},
        {"rescale_factor": 1.0},
        {"image_std": "1"},
    ],
)
def test_a_broken_description_is_named(change: dict[str, Any], tmp_path: Path) -> None:
    GREY.save(tmp_path)
    file = tmp_path / PROCESSOR
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(BrokenFile, match=PROCESSOR):
        ImageProcessor.load(tmp_path)


def test_a_missing_or_unreadable_description_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=f"lacks {PROCESSOR}"):
        ImageProcessor.load(tmp_path)
    for content in ("", "{", "[]", "{}"):
        (tmp_path / PROCESSOR).write_text(content)
        with pytest.raises(BrokenFile, match=PROCESSOR):
            ImageProcessor.load(tmp_path)


def test_a_file_opens_fitted_or_whole(tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (11, 14), np.uint8)
    file = tmp_path / "p.png"
    Image.fromarray(pixels).save(file)
    assert np.array_equal(GREY.open(file), GREY.fit(Image.fromarray(pixels)))
    assert np.array_equal(GREY.open_whole(file, 4)[0], pixels[1:9, 1:13])
    with pytest.raises(UsageError, match="14 by 11 pixels; at least 16"):
        GREY.open_whole(file, 16)
    with pytest.raises(CambrianError, match="nothing"):
        GREY.open(tmp_path / "nothing.png")


# -- split ------------------------------------------------------------------------------------


def split(file: Path, pixels: Bytes, **changes: Any) -> Any:
    np.save(file, pixels)
    settings: dict[str, Any] = {"validation_fraction": 0.3, **changes}
    data = ImageData(source=(str(file),), **settings)
    return read_split(data, GREY)


def contents(images: Images) -> list[bytes]:
    return [picture.tobytes() for picture in images.pixels]


def test_equal_pictures_are_on_one_side_in_any_order(tmp_path: Path) -> None:
    pixels = numbered(60).pixels[:, 0]
    twice = np.concatenate([pixels, pixels])
    found = split(tmp_path / "a.npy", twice)
    train, held_out = contents(found.train), contents(found.held_out)
    assert len(train) + len(held_out) == 120 and not set(train) & set(held_out)
    assert 12 < len(held_out) < 60  # about 0.3 of them
    order = np.random.default_rng(1).permutation(120)
    again = split(tmp_path / "b.npy", twice[order])
    assert sorted(contents(again.train)) == sorted(train)
    assert sorted(contents(again.held_out)) == sorted(held_out)
    assert found.summary["examples"] == {"train": len(train), "validation": len(held_out)}


def test_the_summarys_digest_follows_the_pixels(tmp_path: Path) -> None:
    pixels = numbered(20).pixels[:, 0]
    digests = [split(tmp_path / "a.npy", pixels).summary["content_sha256"] for _ in range(2)]
    assert digests[0] == digests[1]
    pixels[3, 1, 1] ^= 1
    assert split(tmp_path / "a.npy", pixels).summary["content_sha256"] != digests[0]


def test_named_validation_is_all_of_it(tmp_path: Path) -> None:
    other = tmp_path / "other.npy"
    np.save(other, numbered(7).pixels[:, 0])
    found = split(tmp_path / "a.npy", numbered(20).pixels[:, 0], validation=(str(other),))
    assert (len(found.train), len(found.held_out)) == (20, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validation_fraction": 1.0}, "must be in"),
        ({"shift": -1}, "number of pixels"),
        ({"shift": 4}, "number of pixels"),
    ],
)
def test_settings_without_sense(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        split(tmp_path / "a.npy", numbered(3).pixels[:, 0], **change)


def test_nothing_left_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no pictures to train on"):
        split(tmp_path / "a.npy", numbered(1).pixels[:, 0], validation_fraction=0.9999)


# -- batches ----------------------------------------------------------------------------------


def test_every_picture_once_an_epoch_in_full_batches() -> None:
    made = batches(10, 4)
    seen = [row for index in range(10) for row in rows(made, index)]  # four epochs
    assert len(seen) == 40 and len(made) == 3
    epochs = [seen[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == [*range(10)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_batch_larger_than_the_set_spans_epochs() -> None:
    seen = rows(batches(3, 8), 0)
    assert sorted(seen[:3]) == sorted(seen[3:6]) == [0, 1, 2] and len(seen) == 8


def test_a_batch_depends_on_its_number_and_the_seed_alone() -> None:
    changes = {"flip": True, "shift": 1, "binarize": "sample"}
    made = batches(10, 4, 5, **changes)
    whole = [made.batch(index)["pixel_values"] for index in range(9)]
    for index in (8, 0, 3, 7):  # out of order, by an object that has seen nothing
        fresh = batches(10, 4, 5, **changes).batch(index)["pixel_values"]
        assert np.array_equal(fresh, whole[index]) and np.array_equal(
            made.batch(index)["pixel_values"], whole[index]
        )
    assert not np.array_equal(batches(10, 4, 6, **changes).batch(0)["pixel_values"], whole[0])


def test_unshuffled_batches_are_one_pass_in_order() -> None:
    made = batches(10, 4, shuffle=False, flip=True, shift=2)
    assert [rows(made, index) for index in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert rows(made, 4) == rows(made, 1)
    given = numbered(10).pixels
    assert np.array_equal(GREY.denormalize(made.batch(2)["pixel_values"]), given[8:])
    drawn = batches(10, 4, shuffle=False, binarize="sample")
    assert np.array_equal(drawn.batch(1)["pixel_values"], drawn.batch(4)["pixel_values"])


def test_labels_go_with_their_pictures() -> None:
    labels = np.arange(10, dtype=np.int64) * 7
    made = ImageBatches(numbered(10), GREY, ImageData(), 4, 0, labels)
    for index in range(6):
        assert made.batch(index)["labels"].tolist() == [7 * row for row in rows(made, index)]
    with pytest.raises(UsageError, match="batch_size=0"):
        ImageBatches(numbered(10), GREY, ImageData(), 0, 0)


# -- what is drawn ----------------------------------------------------------------------------


def test_sampled_black_and_white_has_the_greys_mean() -> None:
    greys = np.array([0, 1, 64, 128, 254, 255], np.uint8).reshape(1, 6, 1).repeat(20000, 2)
    drawn = binarized(greys[None], "sample", np.random.default_rng(0))
    assert set(np.unique(drawn)) == {0, 255}
    means = drawn.reshape(6, -1).mean(1) / 255
    want = greys[0, :, 0] / 255
    error = np.sqrt(want * (1 - want) / 20000)
    assert (np.abs(means - want) <= 4 * error).all() and means[0] == 0 and means[-1] == 1


def test_the_threshold_is_a_half() -> None:
    drawn = binarized(LEVELS, "threshold", np.random.default_rng(0))
    assert np.array_equal(drawn, np.where(LEVELS >= 128, 255, 0))


def moved(picture: Bytes, down: int, right: int) -> Bytes:
    """(C, H, W) whose pixel (y, x) is the given one's (y + down, x + right), edges repeated."""
    result = np.zeros_like(picture)
    _, height, width = picture.shape
    for y in range(height):
        for x in range(width):
            row, column = min(max(y + down, 0), height - 1), min(max(x + right, 0), width - 1)
            result[:, y, x] = picture[:, row, column]
    return result


def test_a_shifted_picture_is_the_picture_moved_and_its_edge_repeated() -> None:
    given = numbered(200, (3, 5, 6)).pixels
    drawn = augmented(given, ImageData(shift=2), np.random.default_rng(0))
    moves = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
    used: set[tuple[int, int]] = set()
    for before, after in zip(given, drawn, strict=True):
        fitting = [move for move in moves if np.array_equal(moved(before, *move), after)]
        assert len(fitting) == 1
        used |= {*fitting}
    assert used == {*moves}


def test_about_half_of_the_pictures_are_mirrored() -> None:
    given = numbered(200, (3, 4, 5)).pixels
    drawn = augmented(given, ImageData(flip=True), np.random.default_rng(0))
    mirrored = [
        all(np.array_equal(a[:, :, x], b[:, :, 4 - x]) for x in range(5))
        for a, b in zip(given, drawn, strict=True)
    ]
    kept = [np.array_equal(a, b) for a, b in zip(given, drawn, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True)) and 70 < sum(mirrored) < 130


# -- labels -----------------------------------------------------------------------------------


def labelled(*labels: str) -> Images:
    return Images(numbered(len(labels)).pixels, labels)


def test_examples_are_pictures_with_their_labels() -> None:
    examples = Examples(labelled("ant", "bee"))
    assert [label for _, label in examples] == ["ant", "bee"] and len(examples) == 2
    assert np.array_equal(examples[1][0], numbered(2).pixels[1])
    assert Examples(numbered(2))[0][1] is None
    with pytest.raises(IndexError):
        examples[2]
