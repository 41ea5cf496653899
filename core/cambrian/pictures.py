"""Pictures for people: contact sheets, files, and a sketch on the terminal. Numpy and Pillow."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cambrian.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

Bytes = NDArray[np.uint8]
FORMATS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}
MOVING = {".gif": "GIF"}
FRAME = 80  # milliseconds that a picture of a moving one stands
SHADES = " .:-=+*#%@"


def noise(shape: Sequence[int], seed: int, numbers: Sequence[int]) -> NDArray[np.float32]:
    """Standard normal noise (N, *shape): that of one picture depends on the seed and the
    picture's number alone, on every engine (Philox, Salmon et al. 2011)."""
    rows = [
        np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, n], np.uint64)))
        .standard_normal(tuple(shape), np.float32)
        for n in numbers
    ]  # fmt: skip
    return np.stack(rows) if rows else np.zeros((0, *shape), np.float32)


def between(ends: NDArray[np.float32], frames: int) -> NDArray[np.float32]:
    """A walk through latents (N, ...): from each to the next in `frames` steps, ends included.

    On the arc between two (White 2016, "Sampling Generative Networks", section 2.1), for on the
    straight line noise would be shorter than any that a model was trained on.
    """
    if len(ends) < 2:
        return ends
    flat = ends.reshape(len(ends), -1).astype(np.float64)
    walk: list[Any] = []
    for first, last in pairwise(flat):
        lengths = np.linalg.norm(first) * np.linalg.norm(last)
        angle = math.acos(float(np.clip(first @ last / max(lengths, 1e-12), -1, 1)))
        for step in range(frames):
            t = step / frames
            if min(angle, math.pi - angle) < 1e-4:  # opposite ends have no one arc between them
                walk.append((1 - t) * first + t * last)
            else:
                weights = np.sin([(1 - t) * angle, t * angle]) / np.sin(angle)
                walk.append(weights[0] * first + weights[1] * last)
    walk.append(flat[-1])
    return np.stack(walk).reshape(-1, *ends.shape[1:]).astype(np.float32)


def plain(pixels: Bytes) -> Bytes:
    """(C, H, W) as pictures are kept: (H, W) of grey, (H, W, 3) of colour."""
    return np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def sheet(pictures: Sequence[Bytes], columns: int = 0, gap: int = 2) -> Bytes:
    """Pictures side by side, row by row; as many columns as make it square unless given."""
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    rows = -(-len(pictures) // columns)
    height, width = pictures[0].shape[:2]
    size = (rows * (height + gap) + gap, columns * (width + gap) + gap, *pictures[0].shape[2:])
    whole = np.full(size, 128, np.uint8)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        top, left = row * (height + gap) + gap, column * (width + gap) + gap
        whole[top : top + height, left : left + width] = picture
    return whole


def encoded(picture: Bytes, suffix: str) -> bytes:
    """One picture as the content of a file; UsageError for an unknown kind of file."""
    if suffix not in FORMATS:
        known = ", ".join((*FORMATS, *MOVING, ".npy", ".json"))
        raise UsageError(f"'{suffix}' is no kind of picture known here; end the name in {known}.")
    target = io.BytesIO()
    try:
        opened(picture).save(target, FORMATS[suffix])
    except (OSError, ValueError) as error:  # WebP and JPEG have largest sizes
        height, width = picture.shape[:2]
        raise UsageError(
            f"A picture of {width} by {height} cannot be written as {suffix} ({error}); make fewer "
            "at once, or name a .png."
        ) from error
    return target.getvalue()


def animated(pictures: Sequence[Bytes]) -> bytes:
    """Pictures one after the other, as a GIF that begins again."""
    target = io.BytesIO()
    first, *others = [opened(picture) for picture in pictures]
    first.save(target, "GIF", save_all=True, append_images=others, duration=FRAME, loop=0)
    return target.getvalue()


def saved(array: NDArray[Any]) -> bytes:
    """An array as the content of an .npy file."""
    target = io.BytesIO()
    np.save(target, array, allow_pickle=False)
    return target.getvalue()


def opened(picture: Bytes) -> Image:
    """(H, W) or (H, W, 3) as Pillow's image."""
    from PIL import Image

    return Image.fromarray(picture)


def jsonable(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result with its pictures as PNG in base64, and other arrays as lists."""

    def value(name: str, held: Any) -> Any:
        if name == "image":
            return base64.b64encode(encoded(held, ".png")).decode()
        return held.tolist() if isinstance(held, np.ndarray) else held

    return {name: value(name, held) for name, held in result.items()}


def sketch(picture: Bytes, width: int = 56) -> str:
    """A picture in letters, two columns for a pixel, for a glance on a terminal."""
    from PIL import Image

    grey = opened(picture).convert("L")
    columns = min(grey.width, width // 2)
    rows = max(1, round(grey.height * columns / grey.width))
    small = np.asarray(grey.resize((columns, rows), Image.Resampling.BOX), np.int64)
    letters = small * len(SHADES) // 256
    return "\n".join("".join(SHADES[n] * 2 for n in row).rstrip() for row in letters)
