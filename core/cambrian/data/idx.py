"""IDX files, as MNIST comes: pictures, their labels, and which file goes with which.

See http://yann.lecun.com/exdb/mnist.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from cambrian.data.image_files import Picture, require_size, unpacked
from cambrian.data.sources import File, expand
from cambrian.errors import BrokenFile, UsageError, listed
from cambrian.specs import DatasetEntry

IDX = re.compile(rb"\0\0([\x08\x09\x0b-\x0e])([\x01-\x04])")  # two zeros, type, dimensions
EXPANSION = 1032  # times, at most, that gzip makes data smaller


def _shape(stream: BinaryIO, file: File) -> tuple[int, ...]:
    """Read an IDX header: big-endian dimensions, the first of which counts."""
    head = IDX.fullmatch(stream.read(4))
    sizes = stream.read(4 * head[2][0]) if head else b""
    if not head or len(sizes) < 4 * head[2][0]:
        raise BrokenFile(f"{file.name} has no whole IDX header; fetch the file anew.")
    shape = struct.unpack(f">{len(sizes) // 4}I", sizes)
    if head[1] != b"\x08" or len(shape) == 2:
        raise BrokenFile(
            f"{file.name} is IDX of type 0x{head[1].hex()} with {len(shape)} dimensions; pictures "
            "are unsigned bytes (0x08) with 3 or 4, labels with 1."
        )
    if math.prod(shape) > file.size * EXPANSION:
        raise BrokenFile(
            f"{file.name} says that it holds {' x '.join(map(str, shape))} bytes, which is more "
            "than a file of its size can; fetch it anew."
        )
    return shape


def _rows(stream: BinaryIO, count: int, size: int, file: File) -> Iterator[bytes]:
    """`count` times `size` bytes and no more, whatever gzip has in store; or BrokenFile."""
    for number in range(count):
        row = stream.read(size)
        if len(row) < size:
            raise BrokenFile(f"{file.name} ends after {number} of {count} items; fetch it anew.")
        yield row
    if stream.read(1):
        raise BrokenFile(f"{file.name} goes on after the {count} items that it says it holds.")


def read_idx(file: File, labelled: File | None) -> Iterator[Picture]:
    with unpacked(file) as stream:
        count, *shape = _shape(stream, file)
        require_size(shape, file.name)
        labels = _idx_labels(labelled, file, count) if labelled else None
        for number, row in enumerate(_rows(stream, count, math.prod(shape), file)):
            label = None if labels is None else str(labels[number])
            pixels = np.frombuffer(row, np.uint8).reshape(shape)
            yield Picture(f"{file.name}, picture {number + 1}", label, pixels)


def _idx_labels(file: File, pictures: File, count: int) -> bytes:
    with unpacked(file) as stream:
        (found,) = _shape(stream, file)
        if found != count:
            raise BrokenFile(
                f"{file.name} holds {found} labels, but {pictures.name} {count} pictures; they do "
                "not belong together."
            )
        return b"".join(_rows(stream, 1, count, file))


def pairs(files: Sequence[File]) -> dict[str, File | None]:
    """The labels' file of each file of pictures: the one of its name, or next to it, or beside.

    UsageError if labels are left over.
    """
    sizes: dict[str, int] = {}
    for file in files:
        with unpacked(file) as stream:
            sizes[file.path] = len(_shape(stream, file))
    labels = {file.path: file for file in files if sizes[file.path] == 1}
    paired: dict[str, File | None] = {path: None for path, size in sizes.items() if size > 1}
    for path in paired:
        named = [name for name in _names_of_labels(path) if name in labels]
        paired[path] = labels.pop(named[0]) if named else None
    alone = [path for path in sizes if path in labels or not paired.get(path, True)]
    waiting = ""
    for path in alone:
        if not waiting or (waiting in paired) == (path in paired):
            waiting = path
            continue
        pictures, names = (path, waiting) if path in paired else (waiting, path)
        paired[pictures] = labels.pop(names)
        waiting = ""
    for path in [path for path in paired if not paired[path]]:
        beside = [name for name in _names_of_labels(path) if Path(name).is_file()]
        paired[path] = next(_given(beside[0])) if beside else None
    if labels:
        raise UsageError(
            f"{listed(list(labels))} holds labels, but no IDX file of pictures goes with it; name "
            "each file of labels right after its pictures."
        )
    return paired


def _given(item: str) -> Iterator[File]:
    return cast(Iterator[File], expand([item], dict[str, DatasetEntry], Path()))


def _names_of_labels(pictures: str) -> list[str]:
    """What the labels' file may be called: train-images-idx3-ubyte, train-labels-idx1-ubyte.gz."""
    path = Path(pictures)
    plain = path.name.removesuffix(".gz")
    ends = ("", ".gz") if plain == path.name else (".gz", "")
    same = re.sub(r"idx[34]", "idx1", plain.replace("images", "labels"))
    other = re.sub(r"([-.])(?=idx1)", lambda found: "-."[found[1] == "-"], same)
    if same == plain or "images" not in plain:
        return []
    folder = pictures.removesuffix(path.name)  # as it was given: a Path would drop "./"
    return [folder + name + end for name in (same, other) for end in ends]
