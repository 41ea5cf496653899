"""Numbered noise, walks on the arc, contact sheets and files of pictures."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image, ImageSequence

from cambrian import pictures
from cambrian.errors import UsageError
from cambrian.pictures import Bytes

GREY = np.random.default_rng(1).integers(0, 256, (5, 7), np.uint8)
COLOUR = np.random.default_rng(2).integers(0, 256, (5, 7, 3), np.uint8)


def opened(content: bytes) -> Bytes:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_noise_depends_on_seed_and_number_alone() -> None:
    whole = pictures.noise((2, 3), 7, range(20))
    assert whole.dtype == np.float32 and whole.shape == (20, 2, 3)
    for numbers in ([3], [19, 0, 7], range(5, 11), [4, 4]):
        assert np.array_equal(pictures.noise((2, 3), 7, numbers), whole[list(numbers)])
    assert len(np.unique(whole)) == whole.size  # no number repeats another
    assert not np.intersect1d(whole, pictures.noise((2, 3), 8, range(20))).size
    assert pictures.noise((2, 3), 7, []).shape == (0, 2, 3)


def test_noise_is_standard_normal_and_the_same_everywhere() -> None:
    many = pictures.noise((50,), 0, range(400)).astype(np.float64)
    assert abs(many.mean()) < 0.03 and abs(many.std() - 1) < 0.02
    assert abs(np.corrcoef(many[:200].ravel(), many[200:].ravel())[0, 1]) < 0.04
    expected = np.array([-2.4056077, 1.8630323, 0.37253714, -0.31364197], np.float32)
    assert np.array_equal(pictures.noise((4,), 5, [2])[0], expected)  # so a seed is for ever


@pytest.mark.parametrize(("count", "frames"), [(2, 1), (2, 5), (4, 3), (3, 16)])
def test_a_walk_goes_through_its_ends_on_the_arc(count: int, frames: int) -> None:
    rng = np.random.default_rng(count)
    ends = rng.standard_normal((count, 2, 4)).astype(np.float32)
    walk = pictures.between(ends, frames)
    assert walk.shape == ((count - 1) * frames + 1, 2, 4) and walk.dtype == np.float32
    np.testing.assert_allclose(walk[::frames], ends, atol=1e-6)
    sphere = ends / np.linalg.norm(ends.reshape(count, -1), axis=1).reshape(count, 1, 1)
    flat = pictures.between(sphere, frames).reshape(-1, 8).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(flat, axis=1), 1, atol=1e-6)
    for first in range(0, len(flat) - 1, frames):  # equal steps, each the same part of the angle
        part = flat[first : first + frames + 1]
        steps = np.arccos(np.clip((part[:-1] * part[1:]).sum(1), -1, 1))
        whole = np.arccos(np.clip(part[0] @ part[-1], -1, 1))
        np.testing.assert_allclose(steps, whole / frames, atol=1e-4)


def test_walks_between_ends_that_span_no_arc() -> None:
    one = np.array([[1.0, 2.0]], np.float32)
    assert np.array_equal(pictures.between(one, 4), one)
    line = pictures.between(np.concatenate([one, 3 * one]), 4)
    np.testing.assert_allclose(line, one * np.array([[1], [1.5], [2], [2.5], [3]]), rtol=1e-6)
    faded = pictures.between(np.concatenate([one, 0 * one]), 4)
    assert np.isfinite(faded).all() and np.array_equal(faded[-1], [0, 0])


def test_plain_puts_channels_last_and_drops_a_single_one() -> None:
    assert np.array_equal(pictures.plain(GREY[None]), GREY)
    assert np.array_equal(pictures.plain(COLOUR.transpose(2, 0, 1)), COLOUR)


@pytest.mark.parametrize("picture", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize(
    ("count", "columns", "gap", "shape"),
    [
        (1, 0, 2, (1, 1)),
        (5, 0, 2, (2, 3)),
        (16, 0, 1, (4, 4)),
        (5, 2, 0, (3, 2)),
        (3, 8, 2, (1, 3)),
    ],
)
def test_a_sheet_has_every_picture_in_its_place(
    picture: Bytes, count: int, columns: int, gap: int, shape: tuple[int, int]
) -> None:
    given = [picture + np.uint8(n) for n in range(count)]
    sheet = pictures.sheet(given, columns, gap)
    height, width = picture.shape[:2]
    rows, across = shape
    assert sheet.shape[:2] == (rows * (height + gap) + gap, across * (width + gap) + gap)
    untouched = np.ones(sheet.shape[:2], bool)
    for number, each in enumerate(given):
        top = gap + (number // across) * (height + gap)
        left = gap + (number % across) * (width + gap)
        place = np.s_[top : top + height, left : left + width]
        assert np.array_equal(sheet[place], each)
        untouched[place] = False
    assert (sheet[untouched] == 128).all()


@pytest.mark.parametrize("picture", [GREY, COLOUR], ids=["grey", "colour"])
def test_an_encoded_picture_decodes_to_its_pixels(picture: Bytes) -> None:
    assert np.array_equal(opened(pictures.encoded(picture, ".png")), picture)
    for suffix, kind in ((".webp", "WEBP"), (".jpg", "JPEG"), (".jpeg", "JPEG")):
        image = Image.open(io.BytesIO(pictures.encoded(picture, suffix)))
        assert image.format == kind and image.size == (7, 5)


@pytest.mark.parametrize("suffix", [".txt", "", ".PNG2", ".gif"])
def test_an_unknown_kind_of_file_is_refused(suffix: str) -> None:
    with pytest.raises(UsageError, match=r"is no kind of picture.*\.png.*\.npy"):
        pictures.encoded(GREY, suffix)


def test_a_moving_picture_has_its_frames_and_begins_again() -> None:
    frames = [np.roll(GREY, n, axis=1) for n in range(6)]
    image = Image.open(io.BytesIO(pictures.animated(frames)))
    assert image.format == "GIF" and image.info["loop"] == 0
    assert image.info["duration"] == pictures.FRAME
    seen = [np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(image)]
    assert len(seen) == 6
    assert all(np.array_equal(a, b) for a, b in zip(seen, frames, strict=True))
    assert Image.open(io.BytesIO(pictures.animated([COLOUR]))).size == (7, 5)


def test_a_result_goes_through_json_and_back() -> None:
    mean = np.array([0.5, -1.25], np.float32)
    result = {"number": 3, "label": "seven", "image": COLOUR, "mean": mean}
    back = json.loads(json.dumps(pictures.jsonable(result)))
    assert (back["number"], back["label"], back["mean"]) == (3, "seven", [0.5, -1.25])
    assert np.array_equal(opened(base64.b64decode(back["image"])), COLOUR)


def test_a_sketch_is_dark_where_the_picture_is() -> None:
    lit = np.zeros((8, 8), np.uint8)
    lit[2:4, 4:] = 255
    assert pictures.sketch(lit).split("\n") == ["", "", *[" " * 8 + "@" * 8] * 2, "", "", "", ""]
    ramp = np.arange(0, 256, 4, dtype=np.uint8)[None].repeat(64, 0)
    lines = pictures.sketch(ramp, width=40).split("\n")
    assert len(lines) == 20 and {len(line) for line in lines} == {40}
    shades = [pictures.SHADES.index(letter) for letter in lines[0][::2]]
    assert shades == sorted(shades) and set(shades) == set(range(10))
    assert len(pictures.sketch(np.full((1, 300, 3), 255, np.uint8)).split("\n")) == 1


def test_a_walk_between_opposite_ends_is_straight() -> None:
    end = np.ones((1, 4), np.float32)
    walk = pictures.between(np.concatenate([end, -end]), 4)
    np.testing.assert_allclose(walk, end * [[1.0], [0.5], [0.0], [-0.5], [-1.0]], atol=1e-6)
