"""The header of a safetensors file, read and checked before any library opens the file.

    8 bytes: the header's length, little-endian | the header, JSON | the numbers of all tensors

The library takes a name that comes twice, fields that the format does not have, and headers that
cost gigabytes to read; here they are errors. Nothing here needs the whole file: of a file elsewhere
the first bytes are enough (`header_size`, `parse_header`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

from cambrian.errors import BrokenFile

LENGTH = 8  # bytes, of the header's length itself
LARGEST = 8 << 20  # bytes of a header; a model of 1000 layers has one of 2 MB
MOST = 100_000  # tensors
LONGEST = 1000  # letters of a name
DEEPEST = 64  # dimensions, as torch has it
METADATA = "__metadata__"
FIELDS = {"dtype", "shape", "data_offsets"}
# The format's names of number types: torch's name, and the bytes of one number.
DTYPES: Mapping[str, tuple[str, int]] = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "F32": ("float32", 4),
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F64": ("float64", 8),
    "C64": ("complex64", 8),
}
# What lies under the name of weights by mistake, told by how it begins.
STRANGERS = (
    (
        b"version https://git-lfs",
        "it is a pointer of git-LFS, not the weights it stands for; run `git lfs pull` in its "
        "repository, or download it again",
    ),
    (b"<!doctype html", "it is a web page (an error's, most likely); download it again"),
    (b"<html", "it is a web page (an error's, most likely); download it again"),
    (b"PK\x03\x04", "it is a zip archive, as torch.save writes; such weights end in .bin"),
    (b"\x80\x02", "it is a pickle, as torch.save wrote it before 2020; such weights end in .bin"),
    (b"\x1f\x8b", "it is compressed by gzip; unpack it first"),
)


@dataclass(frozen=True)
class TensorInfo:
    """A tensor by its header: `dtype` is a key of DTYPES; `offsets` (begin, end) count the bytes
    from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    offsets: tuple[int, int]


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself. The numbers begin at byte `size` of the file."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    size: int


class _Wrong(ValueError):
    """What is wrong with a header, without the file's name."""


def header(path: Path) -> Header:
    """Read a file's header; BrokenFile if the file is not whole, or not of this format."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            first = file.read(64)
            first += file.read(max(header_size(first, size, str(path)) - len(first), 0))
    except OSError as error:
        raise BrokenFile(f"Cannot read {path}: {error.strerror}.") from error
    return parse_header(first, size, str(path))


def header_size(first: bytes, size: int, where: str) -> int:
    """How many bytes `parse_header` needs, by the first 64 (or all) of a file of `size` bytes.

    BrokenFile, which says `where`, if that cannot be.
    """
    if stranger := recognise_stranger(first):
        _refuse(where, stranger)
    if size < LENGTH + 2 or len(first) < LENGTH:
        _refuse(where, f"it has {size} bytes, too few for a header; download it again")
    needed = LENGTH + int.from_bytes(first[:LENGTH], "little")
    if needed > LENGTH + LARGEST:
        _refuse(where, f"its header would have {needed - LENGTH:,} bytes, more than {LARGEST:,}")
    if needed > size:
        _refuse(where, f"{needed - size:,} bytes of its header are missing; download it again")
    return needed


def parse_header(first: bytes, size: int, where: str) -> Header:
    """Check the header in the `first` bytes (at least `header_size`) of a file of `size` bytes.

    BrokenFile, which says `where`, unless all is as the format has it: every name once, every
    tensor's bytes of the number that its shape makes, one after another up to the file's end.
    """
    end = header_size(first[:64], size, where)
    try:
        found = _decode(first[LENGTH:end])
        metadata = _metadata(found.pop(METADATA, {}))
        if len(found) > MOST:
            raise _Wrong(f"it has {len(found):,} tensors, more than {MOST:,}")
        tensors = {name: _tensor(name, value) for name, value in found.items()}
        _require_gapless(tensors, size - end)
    except _Wrong as error:
        _refuse(where, str(error))
    return Header(tensors, metadata, end)


def encode_header(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """The first bytes of a safetensors file; ValueError for more than `header` would read."""
    table: dict[str, Any] = {METADATA: dict(metadata)}
    for name, tensor in tensors.items():
        fields = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": tensor.offsets}
        table[name] = fields
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    if len(text) > LARGEST or len(tensors) > MOST:
        raise ValueError(f"{len(tensors):,} tensors are too many for one file")
    return len(text).to_bytes(LENGTH, "little") + text


def recognise_stranger(first: bytes) -> str:
    """What a file is that begins so and is no safetensors file, and what to do about it; an empty
    string if it is none of the usual."""
    if not first:
        return "it is empty; download it again"
    start = first.lstrip().lower()
    for mark, what in STRANGERS:
        if first.startswith(mark) or start.startswith(mark):
            return what
    return ""


def _decode(text: bytes) -> dict[str, Any]:
    if not text.startswith(b"{"):
        raise _Wrong("its header is no JSON object")
    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=_once)
    except _Wrong:
        raise
    except (ValueError, RecursionError) as error:
        raise _Wrong("its header is no valid JSON; download it again") from error
    return cast(dict[str, Any], found)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose keys differ."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise _Wrong(f"its header has {_quoted(twice)} twice")
    return found


def _metadata(found: Any) -> dict[str, str]:
    values = cast(dict[str, Any], found).values() if isinstance(found, dict) else (None,)
    if not all(isinstance(value, str) for value in values):
        raise _Wrong("its metadata must be strings by name")
    return cast(dict[str, str], found)


def _tensor(name: str, found: Any) -> TensorInfo:
    """One entry of the header; _Wrong unless its bytes are as many as its shape makes."""
    what = f"tensor {_quoted(name)}"
    if not name.isprintable() or len(name) > LONGEST:
        raise _Wrong(f"{what} has a name that is no line of up to {LONGEST} letters")
    if not isinstance(found, dict) or cast(dict[str, Any], found).keys() != FIELDS:
        raise _Wrong(f"{what} must have dtype, shape and data_offsets, and nothing else")
    fields = cast(dict[str, Any], found)
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _Wrong(f"{what} has the dtype {_quoted(dtype)}; these are known: {', '.join(DTYPES)}")
    if not _whole_numbers(shape) or len(shape) > DEEPEST:
        raise _Wrong(f"{what} has a shape that is no list of up to {DEEPEST} whole numbers")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise _Wrong(f"{what} has data_offsets that are not two whole numbers")
    if math.prod(size or 1 for size in shape) >= 1 << 60:  # torch counts in 64 bits, even to none
        raise _Wrong(f"{what} has a shape too large for any machine")
    if offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype][1]:
        raise _Wrong(f"{what} has other bytes than its shape makes")
    return TensorInfo(dtype, tuple(shape), (offsets[0], offsets[1]))


def _whole_numbers(value: Any) -> bool:
    """Whether it is a list of what a signed 64-bit number can count; True is no number."""
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 1 << 63 for item in cast(list[Any], value)
    )


def _require_gapless(tensors: Mapping[str, TensorInfo], held: int) -> None:
    """_Wrong unless the tensors fill the `held` bytes after the header, each byte once."""
    place = 0
    for begin, end in sorted(tensor.offsets for tensor in tensors.values()):
        if begin != place:
            raise _Wrong(f"its tensors overlap, or leave a gap, at byte {min(begin, place):,}")
        place = end
    if place > held:
        raise _Wrong(f"{place - held:,} bytes are missing at its end; download it again")
    if place < held:
        raise _Wrong(f"{held - place:,} bytes at its end belong to no tensor")


def _quoted(value: Any) -> str:
    """A name or value that a stranger chose, short enough for a sentence and on one line."""
    return ascii(value[:60] if isinstance(value, str) else type(value).__name__)


def _refuse(where: str, reason: str) -> NoReturn:
    raise BrokenFile(f"{where} is not a readable safetensors file: {reason}.")
