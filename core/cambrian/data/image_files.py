"""Pictures in files: decoding one, and reading NumPy's and Parquet's arrays of them."""

from __future__ import annotations

import gzip
import io
import json
import warnings
import zipfile
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cambrian.data.sources import File
from cambrian.errors import BrokenFile, CambrianError, listed

Bytes: TypeAlias = NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
CHANNELS = (1, 3, 4)
MOST_PIXELS = 89_478_485  # in a picture: Pillow's own limit, a quarter GiB of RGB
MOST_BYTES = 8 << 30  # in an .npz archive, unpacked
ROWS = 64  # of a Parquet file at a time


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """`content` is a file, its bytes, an array (H, W) or (H, W, 1, 3 or 4) or an image."""

    name: str
    label: str | None
    content: Path | bytes | Bytes | Image.Image


class Unreadable(Exception):
    """Why a picture is skipped."""


def decoded(content: Path | bytes | Bytes | Image.Image) -> Image.Image:
    """A picture as L or RGB, upright, on white; Unreadable says why it is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return _flat(_opened(content))
        except UnidentifiedImageError as error:
            raise Unreadable("this is no PNG, JPEG, WebP, BMP or GIF") from error
        except Exception as error:  # a damaged picture makes decoders fail in any way
            raise Unreadable(str(error) or type(error).__name__) from error


def _opened(content: Path | bytes | Bytes | Image.Image) -> Image.Image:
    if isinstance(content, Image.Image):
        return content
    if isinstance(content, np.ndarray):
        return Image.fromarray(content[..., 0] if content.shape[2:] == (1,) else content)
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    with Image.open(file, formats=FORMATS) as image:
        return ImageOps.exif_transpose(image)


def _flat(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise Unreadable("its values are floats, of no known range")
    if image.mode.startswith("I"):  # 16 bits, which `convert` would clip to 8
        levels = np.asarray(image).astype(np.float64)
        levels[levels == image.info.get("transparency", -1)] = 65535
        return Image.fromarray(np.rint(levels.clip(0, 65535) / 257).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def require_size(shape: Sequence[int], name: str) -> None:
    """BrokenFile unless `shape` is a picture's, (H, W) or (H, W, C)."""
    height, width, *channels = shape
    if not 0 < height * width <= MOST_PIXELS or channels not in ([], *([n] for n in CHANNELS)):
        raise BrokenFile(
            f"{name} says that its pictures are {' x '.join(map(str, shape))}; they must have at "
            f"most {MOST_PIXELS} pixels and 1, 3 or 4 channels."
        )


@contextmanager
def unpacked(file: File) -> Generator[BinaryIO]:
    """Open a file, through gzip if that is what it is; BrokenFile if gzip finds it broken."""
    try:
        with Path(file.path).open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = gzip.GzipFile(fileobj=raw) if packed else raw
            yield cast(BinaryIO, stream)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BrokenFile(f"{file.name} is not a whole gzip file ({error}).") from error


# -- NumPy ------------------------------------------------------------------------------------


def read_numpy(file: File) -> Iterator[Picture]:
    """An array of pictures: uint8, or floats from 0 to 1 or from 0 to 255."""
    try:
        array, labels = _arrays(file)
    except CambrianError:
        raise
    except Exception as error:  # a damaged header makes NumPy's parser fail in any way
        raise BrokenFile(
            f"{file.name} is no whole NumPy file, or holds Python objects, which could run code "
            "and are not read; save it anew with numpy.savez."
        ) from error
    array = _channels_last(array, file.name)
    factor = _to_bytes(array, file.name)
    if labels is not None and labels.shape not in ((len(array),), (len(array), 1)):
        raise BrokenFile(
            f"{file.name} holds labels of shape {labels.shape} for {len(array)} pictures."
        )
    texts = None if labels is None else [_label(v, file.name) for v in labels.ravel().tolist()]
    for number, picture in enumerate(array):
        pixels = np.asarray(picture)
        if pixels.dtype != np.uint8:
            pixels = np.rint(pixels.astype(np.float64) * factor).astype(np.uint8)
        label = None if texts is None else texts[number]
        yield Picture(f"{file.name}, picture {number + 1}", label, pixels)


def _arrays(file: File) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The pictures and perhaps labels; raises what NumPy and zipfile do."""
    with unpacked(file) as stream:
        zipped = stream.read(2) == b"PK"
    if not zipped:  # mapped, so that a header that lies cannot ask for memory
        return np.load(file.path, mmap_mode="r", allow_pickle=False), None
    with zipfile.ZipFile(file.path) as packed:
        if (size := sum(entry.file_size for entry in packed.infolist())) > MOST_BYTES:
            raise BrokenFile(
                f"{file.name} holds {size} bytes unpacked, more than {MOST_BYTES}; split it."
            )
    with np.load(file.path, allow_pickle=False) as archive:
        key = next((k for k in ("images", "x", "pixels", "x_train") if k in archive.files), None)
        if key is None:
            able = [k for k in archive.files if np.ndim(archive[k]) in (3, 4)]
            if len(able) != 1:
                raise BrokenFile(
                    f"{file.name} has no array 'images', 'x', 'pixels' or 'x_train', and "
                    f"{len(able)} arrays that could be pictures among {listed(archive.files)}; "
                    "rename one."
                )
            key = able[0]
        keys = ("y_train",) if key == "x_train" else ("labels", "y")
        labels = next((np.asarray(archive[k]) for k in keys if k in archive.files), None)
        return np.asarray(archive[key]), labels


def _channels_last(array: NDArray[Any], name: str) -> NDArray[Any]:
    """(N, H, W) or (N, H, W, C) of either that or (N, C, H, W); BrokenFile for other shapes."""
    if array.ndim == 4 and array.shape[3] not in CHANNELS and array.shape[1] in CHANNELS:
        array = np.moveaxis(array, 1, -1)
    if array.ndim not in (3, 4):
        raise BrokenFile(
            f"{name} has shape {array.shape}; pictures are N x H x W, N x H x W x C or "
            "N x C x H x W."
        )
    require_size(array.shape[1:], name)
    return array


def _to_bytes(array: NDArray[Any], name: str) -> float:
    """What takes the values to 0 to 255; BrokenFile if they are not of a picture."""
    if array.dtype == np.uint8 or not array.size:
        return 1.0
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if low >= 0 and high <= 255:  # false for what is not a number, too
            return 255.0 if high <= 1 else 1.0
    raise BrokenFile(
        f"{name} holds {array.dtype}; pictures are uint8, or floats from 0 to 1 or from 0 to 255."
    )


def _label(value: Any, where: str) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if not isinstance(value, str | int):
        raise BrokenFile(f"{where}: labels are text or integers, not {type(value).__name__}.")
    return str(value)


# -- Parquet ----------------------------------------------------------------------------------


def read_parquet(file: File) -> Iterator[Picture]:
    """Rows with a picture file's bytes, as the Hugging Face datasets library writes them."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise CambrianError(
            f"{file.name} is Parquet, which pyarrow reads; run pip install 'cambrian[parquet]'."
        ) from error
    try:
        with ParquetFile(file.path) as table:
            image, label = _columns(table.schema_arrow, file.name)
            names = _class_names(table.schema_arrow.metadata, label)
            number = 0
            for batch in table.iter_batches(ROWS, columns=[c for c in (image, label) if c]):
                for row in batch.to_pylist():
                    number += 1
                    yield _row(row[image], row.get(label), names, f"{file.name}, row {number}")
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise BrokenFile(f"{file.name} is not a whole Parquet file ({reason}).") from error


def _row(content: Any, label: Any, names: Sequence[str], where: str) -> Picture:
    data = content["bytes"] if isinstance(content, dict) else content
    if names and isinstance(label, int):  # -1 stands for no label there
        if not -1 <= label < len(names):
            raise BrokenFile(f"{where}: label {label}, but there are {len(names)} names.")
        label = None if label < 0 else names[label]
    return Picture(where, None if label is None else _label(label, where), data or b"")


def _columns(schema: Any, name: str) -> tuple[str, str | None]:
    """The names of the columns of pictures and labels; BrokenFile if there are no pictures."""
    from pyarrow import types

    def holds_bytes(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    def has_bytes(kind: Any) -> bool:
        field = kind.get_field_index("bytes") if types.is_struct(kind) else -1
        return field >= 0 and holds_bytes(kind.field(field).type)

    structs = [field.name for field in schema if has_bytes(field.type)]
    able = structs + [field.name for field in schema if holds_bytes(field.type)]
    if not able:
        raise BrokenFile(f"{name} has no column of image bytes among {listed(schema.names)}.")
    label = next((k for k in ("label", "labels", "fine_label") if k in schema.names), None)
    return next((k for k in ("image", "img") if k in able), able[0]), label


def _class_names(metadata: Mapping[bytes, bytes] | None, label: str | None) -> list[str]:
    """The classes' names that the datasets library wrote into the schema; none if it did not."""
    try:
        said = json.loads((metadata or {})[b"huggingface"])
        names = said["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []
