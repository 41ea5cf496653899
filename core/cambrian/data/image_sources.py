"""Where pictures come from: IDX, picture files, folders, NumPy, Parquet and named data sets.

A picture that cannot be decoded is skipped and named; a container that is not whole is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cambrian.data.idx import IDX, pairs, read_idx
from cambrian.data.image_files import (
    Bytes,
    Picture,
    Unreadable,
    decoded,
    read_numpy,
    read_parquet,
    require_size,
    unpacked,
)
from cambrian.data.sources import STDIN, File, expand, require_characters
from cambrian.errors import BrokenFile, CambrianError, UsageError, listed
from cambrian.specs import PYTHON, DatasetEntry, Ref

Fit = Callable[[Image.Image], Bytes]
"""One picture, of mode L or RGB, to (C, H, W) uint8, always of one shape."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
MAGIC = {"npz": b"PK", "npy": b"\x93NUMPY", "parquet": b"PAR1"}
IDX_NAME = re.compile(r"idx[134](-ubyte)?(\.gz)?$")


@dataclass(frozen=True, eq=False)
class Images:
    """Pictures of one size.

    pixels (N, C, H, W) uint8; labels, one a picture, or None; skipped: (name, reason) of those
    that could not be read.
    """

    pixels: Bytes
    labels: tuple[str, ...] | None
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.integer]) -> Images:
        """The pictures that a mask (N,) or their numbers choose, with their labels."""
        numbers = np.arange(len(self))[rows]
        labels = None if self.labels is None else tuple(self.labels[n] for n in numbers)
        return Images(self.pixels[numbers], labels, self.skipped)


_Place: TypeAlias = File | Iterable[Picture]


def read_images(items: Sequence[str], fit: Fit, datasets: Mapping[str, DatasetEntry]) -> Images:
    """Read and fit the pictures that `items` name: a path first, then a glob, then a data set.

    All are held in memory, N * C * H * W bytes, for a moment twice. NotFound if an item names
    nothing, UsageError if there are no pictures or some have labels and others none, BrokenFile
    if an IDX, NumPy or Parquet file is not whole.
    """
    pixels: list[Bytes] = []
    labels: list[str] = []
    skipped: list[tuple[str, str]] = []
    first: dict[bool, str] = {}  # the first picture with a label, and without
    try:
        for picture in _pictures([*_places(items, datasets)]):
            try:
                pixels.append(fit(decoded(picture.content)))
            except Unreadable as error:
                skipped.append((picture.name, str(error)))
                continue
            first.setdefault(picture.label is not None, picture.name)
            _require_alike(first)
            if picture.label is not None:
                require_characters(picture.label, picture.name)
                labels.append(picture.label)
    except OSError as error:
        raise UsageError(f"Cannot read {error.filename or items}: {error.strerror}.") from error
    if not pixels:
        why = "; ".join(f"{name}: {reason}" for name, reason in skipped[:3])
        where = listed(items) or "an empty list"
        raise UsageError(f"{where} gives no pictures{why and f' ({why})'}; name others.")
    return Images(np.stack(pixels), tuple(labels) if True in first else None, tuple(skipped))


def _require_alike(first: Mapping[bool, str]) -> None:
    if len(first) == 2:
        raise UsageError(
            f"{first[True]} has a label, but {first[False]} has none; give pictures that all have "
            "labels, or pictures that all have none."
        )


# -- places -----------------------------------------------------------------------------------


def _places(items: Iterable[str], datasets: Mapping[str, DatasetEntry]) -> Iterator[_Place]:
    for item in items:
        if item == STDIN:
            raise UsageError("Pictures cannot be read from standard input ('-'); name a file.")
        if Path(item).is_dir():
            yield from _folder(Path(item))
        elif not Path(item).exists() and item in datasets:
            yield from _dataset(datasets[item], datasets)
        else:
            yield from _files(item, datasets)


def _files(item: str, datasets: Mapping[str, DatasetEntry]) -> Iterator[File]:
    # Standard input, which is refused above, and data sets are all that gives more than files.
    return cast(Iterator[File], expand([item], lambda: datasets, Path()))


def _folder(folder: Path) -> Iterator[_Place]:
    """The IDX files directly in a folder, then pictures; a sub-folder's name is their label."""
    # Joined by hand, since a Path of "." would make standard input of a file called "-".
    names = sorted(f"{folder}/{p.name}" for p in folder.iterdir() if not p.name.startswith("."))
    files = [file for name in names if Path(name).is_file() for file in _files(name, {})]
    idx = {f.path: f for f in files if not _pictorial(f) and _form(f) == "idx"}
    # A file and its own .gz often lie side by side.
    yield from (f for p, f in idx.items() if not (f.gzipped and p[:-3] in idx))
    found: list[tuple[File, str | None]] = [(file, None) for file in files]
    for place in (Path(name) for name in names if Path(name).is_dir()):
        found += [(file, place.name) for file in _files(f"{folder}/{place.name}", {})]
    pictures = [Picture(f.name, label, Path(f.path)) for f, label in found if _pictorial(f)]
    if not idx and not pictures:
        raise UsageError(
            f"{folder} holds no pictures ({' '.join(SUFFIXES)}) or IDX files; name files of other "
            f"kinds one by one, or by a pattern such as '{folder}/*.parquet'."
        )
    yield pictures


def _pictorial(file: File) -> bool:
    return file.path.lower().endswith(SUFFIXES)


def _dataset(entry: DatasetEntry, datasets: Mapping[str, DatasetEntry]) -> Iterator[_Place]:
    if entry.kind != "images":
        raise UsageError(f"The data set '{entry.name}' holds {entry.kind}, not images.")
    for item in entry.source:
        if item.startswith(PYTHON):
            yield _made(entry.name, item)
        elif item in datasets and not Path(item).exists():
            raise UsageError(f"The data set '{entry.name}' may not be made of another, '{item}'.")
        else:
            yield from _places([item], {})


def _made(name: str, item: str) -> Iterator[Picture]:
    """What a package's function gives: pairs of a picture and a label or None."""
    make = Ref[Callable[[], Iterable[Any]]](item.removeprefix(PYTHON)).load()
    for number, row in enumerate(make(), start=1):
        where = f"{name}, picture {number}"
        match row:
            case (Image.Image() as content, str() | int() | np.integer() | None as label):
                pass
            case (np.ndarray() as content, str() | int() | np.integer() | None as label):
                if content.dtype != np.uint8 or content.ndim not in (2, 3):
                    raise CambrianError(
                        f"{where} is {content.dtype} of shape {content.shape}, not uint8 of height "
                        f"x width (x channels); the function {item} is broken."
                    )
                require_size(content.shape, where)
            case _:
                raise CambrianError(
                    f"{where} is no pair of a picture (PIL image or array) and a label (text, "
                    f"number or None); the function {item} is broken."
                )
        yield Picture(where, None if label is None else str(label), content)


def _pictures(places: Sequence[_Place]) -> Iterator[Picture]:
    """Open each place in order, once the IDX files among them are paired."""
    forms = {place.path: _form(place) for place in places if isinstance(place, File)}
    labels = pairs([p for p in places if isinstance(p, File) and forms[p.path] == "idx"])
    for place in places:
        if not isinstance(place, File):
            yield from place
        elif (form := forms[place.path]) == "picture":
            yield Picture(place.name, None, Path(place.path))
        elif form != "idx":
            yield from {"npz": read_numpy, "npy": read_numpy, "parquet": read_parquet}[form](place)
        elif place.path in labels:
            yield from read_idx(place, labels[place.path])


def _form(file: File) -> str:
    """What a file is: by its content, or where that is damaged by its name."""
    try:
        with unpacked(file) as stream:
            head = stream.read(8)
    except BrokenFile:
        head = b""
    name = Path(file.path).name.lower()
    forms = ["idx"] if IDX.match(head) else []
    forms += [form for form, magic in MAGIC.items() if head.startswith(magic)]
    forms += [form for form in MAGIC if name.endswith(f".{form}")]
    return [*forms, "idx" if IDX_NAME.search(name) else "picture"][0]
