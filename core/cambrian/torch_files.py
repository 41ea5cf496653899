"""Weights that torch.save wrote (pytorch_model.bin), converted to safetensors once.

Both forms of the file are read, without torch and without running what is in it: the zip archive
(since torch 1.6), and the older stream of pickles with the numbers after them. Tensors are written
one at a time, so that the memory needed is that of the largest.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from struct import Struct
from struct import error as StructError
from typing import Any, BinaryIO, NamedTuple, NoReturn, cast

from cambrian.errors import BrokenFile, listed
from cambrian.files import cache_folder, disk_failure, read_json, sha256, write_json, write_with
from cambrian.torch_pickle import MAGIC, Refused, Storage, TensorView, read_pickle
from cambrian.weight_files import (
    DTYPES,
    TensorInfo,
    encode_header,
    header,
    recognise_stranger,
)

CONVERTED = "converted"
NOTES = "verified.json"
TICK = 20_000_000  # ns; a kernel that counts 100 ticks a second has 10 ms
LARGEST_PICKLE = 64 << 20  # bytes
LARGEST_DIRECTORY = 16 << 20  # bytes of a zip archive's list of entries
REPEATS = 8  # how often the file's size the tensors may be together: tied ones are written apart
ENTRY = Struct("<4s22xHH")  # before an entry of a zip archive: mark, lengths of name and of extra
NUMEL = Struct("<q")  # before a storage of the older form


class _Content(NamedTuple):
    """A file, read: the value of its pickle, and where in the file each storage begins."""

    value: Any
    places: Mapping[str, int]


class _Directory(io.FileIO):
    """A file for `zipfile`, which would read a list of entries of any length at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read; Refused for more than a list of entries may have."""
        if size is not None and size > LARGEST_DIRECTORY:
            raise Refused("its list of entries is too long")
        return super().read(size)


def torch_name(weights_file: str) -> str:
    """What the weights are called where torch.save wrote them: "model.safetensors" is
    "pytorch_model.bin" there; any other name keeps its stem."""
    stem = Path(weights_file).stem
    return f"{'pytorch_model' if stem == 'model' else stem}.bin"


def converted(file: Path) -> Path:
    """The same tensors as a safetensors file, which is kept in
    `$XDG_CACHE_HOME/cambrian/converted` under the sha256 of `file`; a damaged one is made anew.

    Neither is hashed again while both have the inode, size and time that are noted beside it.
    BrokenFile for a file that is not whole or holds anything but tensors by name, CambrianError
    if the cache cannot be written.
    """
    try:
        before = _state(file)
        if (known := _noted(before)) is not None:
            return known
        digest = sha256(file)
        target = cache_folder(CONVERTED) / f"{digest}.safetensors"
        if not is_intact(target, digest):
            _convert(file, digest, target)
        if _state(file) != before:
            target.unlink(missing_ok=True)
            raise BrokenFile(f"{file} changed while it was read; try again when it is complete.")
    except OSError as error:
        raise BrokenFile(f"Cannot read {file}: {error.strerror}.") from error
    _note(before, target)
    return target


def conversions() -> list[Path]:
    """All converted files; the stem of each is the sha256 of what it was made from."""
    return sorted(cache_folder(CONVERTED).glob("*.safetensors"))


def _state(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]


def _notes() -> dict[str, Any]:
    """For each converted file, by name: the states of its source and of itself when hashed."""
    with suppress(BrokenFile):
        return read_json(cache_folder(CONVERTED) / NOTES)
    return {}


def _noted(source: list[int]) -> Path | None:
    """The file that was converted from a source in this state, if it has not changed since."""
    notes = _notes()
    for target in conversions():
        with suppress(OSError):  # it has just gone
            if notes.get(target.name) == [source, _state(target)]:
                return target
    return None


def _note(source: list[int], target: Path) -> None:
    """Remember both as they are. Not if they are too new: what is written within one tick of the
    disk's clock has the same time. A note that is lost costs a hash."""
    with suppress(OSError):
        states = [source, _state(target)]
        if time.time_ns() - max(state[-1] for state in states) < TICK:
            return
        there = {file.name for file in conversions()}
        notes = {name: note for name, note in _notes().items() if name in there}
        write_json(cache_folder(CONVERTED) / NOTES, {**notes, target.name: states})


def is_intact(target: Path, digest: str) -> bool:
    """Whether the file is there, is of this source, and has the numbers that were written."""
    try:
        found = header(target)
    except BrokenFile:
        return False
    with target.open("rb") as file:
        file.seek(found.size)
        numbers = hashlib.file_digest(file, "sha256").hexdigest()
    expected = {"source_sha256": digest, "data_sha256": numbers}
    return found.metadata.items() >= expected.items()


def _convert(file: Path, digest: str, target: Path) -> None:
    import cambrian

    try:
        with file.open("rb") as source:
            content = _read(source)
            tensors, ignored = _named_tensors(content.value)
            size = os.fstat(source.fileno()).st_size
            _require_inside(tensors, content.places, size)
            about = {
                "format": "pt",
                "source": file.name,
                "source_sha256": digest,
                "converter": f"cambrian {cambrian.__version__}",
                "ignored": f"{ignored}",
            }
            blocks = _blocks(source, tensors, content.places)
            infos = _layout(tensors)
            encode_header(infos, about)  # so that too many tensors are known before any is written
            _write(target, infos, about, blocks)
    except (Refused, ValueError) as error:
        raise BrokenFile(f"{file} cannot be read as weights of torch: {error}.") from error


def _read(file: BinaryIO) -> _Content:
    """Refused unless the file is one that torch.save writes."""
    first = _slice(file, 0, 264)
    if first.startswith(b"PK"):
        return _read_zip(file)
    if first.startswith(b"\x80"):
        return _read_stream(file)
    if first[257:262] == b"ustar":
        raise Refused("it is a tar archive, as torch wrote before 2017; save it with a newer torch")
    raise Refused(recognise_stranger(first) or "it is neither a zip archive nor a pickle")


def _read_zip(file: BinaryIO) -> _Content:
    """The form since torch 1.6: ROOT/data.pkl, ROOT/byteorder, and ROOT/data/KEY for a storage."""
    entries = _entries(file)
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Refused("it is a zip archive without the data.pkl that torch.save writes")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in entries:
        place, size = entries[f"{root}byteorder"]
        if size != 6 or _slice(file, place, size) != b"little":
            raise Refused("its numbers are not little-endian; save it again on another machine")
    place, size = entries[pickles[0]]
    if size > LARGEST_PICKLE:
        raise Refused(f"its pickle has {size:,} bytes, more than {LARGEST_PICKLE:,}")
    found = read_pickle(_slice(file, place, size))
    if found.end != size:
        raise Refused("something follows its pickle")
    data = f"{root}data/"
    places = {n.removeprefix(data): p for n, (p, _) in entries.items() if n.startswith(data)}
    for storage in found.storages.values():
        held = entries.get(data + storage.key, (0, -1))[1]
        if held != storage.size * DTYPES[storage.dtype][1]:
            raise Refused("a storage is missing, or has another size than its pickle says")
    return _Content(found.value, places)


def _entries(file: BinaryIO) -> dict[str, tuple[int, int]]:
    """Where each entry of a zip archive lies, and its size in bytes; all must be uncompressed."""
    total = os.fstat(file.fileno()).st_size
    try:
        with _Directory(file.fileno(), closefd=False) as directory:
            found = zipfile.ZipFile(directory).infolist()
    except Refused:
        raise
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, StructError) as error:
        raise Refused("its zip archive is damaged; download it again") from error
    entries: dict[str, tuple[int, int]] = {}
    for entry in found:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise Refused("an entry of its zip archive is compressed, which torch.save never does")
        begin = entry.header_offset if 0 <= entry.header_offset < total else total
        before = _slice(file, begin, ENTRY.size)
        mark, name, extra = ENTRY.unpack(before) if len(before) == ENTRY.size else (b"", 0, 0)
        place = begin + ENTRY.size + name + extra
        if mark != b"PK\x03\x04" or place + entry.file_size > total or entry.filename in entries:
            raise Refused("its zip archive is damaged; download it again")
        entries[entry.filename] = (place, entry.file_size)
    return entries


def _slice(file: BinaryIO, place: int, size: int) -> bytes:
    return os.pread(file.fileno(), size, place)


def _read_stream(file: BinaryIO) -> _Content:
    """The form before torch 1.6: pickles of a magic number, a version, facts of the machine, the
    value and the storages' keys; then each storage, after the number of its numbers."""
    data = _slice(file, 0, LARGEST_PICKLE)
    magic = read_pickle(data)
    if magic.value != MAGIC:
        raise Refused("it is a pickle, but not one that torch.save wrote")
    version = read_pickle(data, magic.end)
    machine = read_pickle(data, version.end)
    if version.value != 1001 or not isinstance(machine.value, dict):
        raise Refused("it is of an unknown version of torch.save's format")
    if cast(dict[str, Any], machine.value).get("little_endian") is not True:
        raise Refused("its numbers are not little-endian; save it again on another machine")
    found = read_pickle(data, machine.end)
    keys = read_pickle(data, found.end)
    if not isinstance(keys.value, list):
        raise Refused("its list of storages is damaged; download it again")
    places = _stream_places(file, keys.end, cast(list[Any], keys.value), found.storages)
    return _Content(found.value, places)


def _stream_places(
    file: BinaryIO, end: int, keys: list[Any], known: Mapping[str, Storage]
) -> dict[str, int]:
    places: dict[str, int] = {}
    for key in keys:
        storage = known.get(key) if isinstance(key, str) else None
        before = _slice(file, end, NUMEL.size)
        if storage is None or key in places:
            raise Refused("it holds a storage that no tensor is in, or one twice")
        if len(before) < NUMEL.size or NUMEL.unpack(before)[0] != storage.size:
            raise Refused("a storage is missing, or has another size than its pickle says")
        places[key] = end + NUMEL.size
        end = places[key] + storage.size * DTYPES[storage.dtype][1]
    if known.keys() != places.keys():
        raise Refused("a storage is missing; download it again")
    total = os.fstat(file.fileno()).st_size
    if end != total:
        fault = f"{end - total:,} bytes are missing at" if end > total else "something follows"
        raise Refused(f"{fault} its end; download it again")
    return places


def _inner(table: Mapping[Any, Any]) -> dict[str, dict[Any, Any]]:
    """The dictionaries among a dictionary's values, each once, whatever refers to it."""
    distinct = {id(item): (str(name)[:60], item) for name, item in table.items() if _is_table(item)}
    return dict(distinct.values())


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _named_tensors(value: Any) -> tuple[dict[str, TensorView], int]:
    """The tensors by name, and how many other values there are beside them.

    They are the pickle's value, or one of its values ({"state_dict": ...}).
    """
    if not isinstance(value, dict):
        _refuse_value(value)
    table = cast(dict[Any, Any], value)
    sets = {name: inner for name, inner in _inner(table).items() if _has_tensors(inner)}
    if _has_tensors(table) and sets:
        raise Refused(f"it holds tensors beside more of them in {listed([*map(ascii, sets)])}")
    if len(sets) > 1:
        names = listed([*map(ascii, sets)])
        raise Refused(f"it holds several sets of weights ({names}); save the one that is wanted")
    chosen = next(iter(sets.values()), table)
    tensors = {name: item for name, item in chosen.items() if isinstance(item, TensorView)}
    if not tensors:
        raise Refused("it holds no tensors by name")
    if not all(isinstance(name, str) for name in tensors):
        raise Refused("it holds tensors without names")
    return tensors, len(chosen) - len(tensors) + (len(table) - 1 if sets else 0)


def _has_tensors(table: Mapping[Any, Any]) -> bool:
    return any(isinstance(item, TensorView) for item in table.values())


def _refuse_value(value: Any) -> NoReturn:
    what = "a tensor without a name" if isinstance(value, TensorView) else type(value).__name__
    raise Refused(f"it holds {what} where a state_dict is wanted, which is tensors by name")


def _require_inside(
    tensors: Mapping[str, TensorView], places: Mapping[str, int], size: int
) -> None:
    """Refused for a tensor that reaches beyond its storage, or where together they would be many
    times as large as the file."""
    total = 0
    for name, tensor in tensors.items():
        count, last = 1, tensor.offset
        for length, stride in zip(tensor.shape, tensor.strides, strict=False):
            count, last = count * length, last + max(length - 1, 0) * stride
        fits = count == 0 or (last < tensor.storage.size and count <= tensor.storage.size)
        if not fits or len(tensor.shape) != len(tensor.strides) or tensor.storage.key not in places:
            raise Refused(f"its tensor {name[:60]!a} reaches beyond its storage")
        total += count * DTYPES[tensor.storage.dtype][1]
    if total > REPEATS * size:
        raise Refused(f"its tensors overlap: together they would have {total:,} bytes")


def _layout(tensors: Mapping[str, TensorView]) -> dict[str, TensorInfo]:
    """The tensors one after another, the widest numbers first, so that each is aligned."""
    infos: dict[str, TensorInfo] = {}
    place = 0
    for name, tensor in _ordered(tensors):
        dtype = tensor.storage.dtype
        size = DTYPES[dtype][1]
        for length in tensor.shape:
            size *= length
        infos[name] = TensorInfo(dtype, tensor.shape, (place, place + size))
        place += size
    return infos


def _ordered(tensors: Mapping[str, TensorView]) -> list[tuple[str, TensorView]]:
    return sorted(tensors.items(), key=lambda item: (-DTYPES[item[1].storage.dtype][1], item[0]))


def _blocks(
    file: BinaryIO, tensors: Mapping[str, TensorView], places: Mapping[str, int]
) -> Iterator[Any]:
    """Each tensor's numbers as an array without gaps, in the order of `_layout`."""
    import numpy as np

    whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for _, tensor in _ordered(tensors):
        width = DTYPES[tensor.storage.dtype][1]
        begin = places[tensor.storage.key] + tensor.offset * width
        strides = [stride * width for stride in tensor.strides]
        if 0 in tensor.shape:
            begin = 0  # nothing is read there, and there may be nothing
            strides = [0] * len(strides)
        bits = np.ndarray(tensor.shape, f"<u{width}", whole, begin, strides)
        yield np.ascontiguousarray(bits).reshape(-1)


def _write(
    target: Path, infos: Mapping[str, TensorInfo], about: Mapping[str, str], blocks: Iterator[Any]
) -> None:
    """Write a safetensors file whose metadata has the sha256 of its numbers."""

    def write(partial: Path) -> None:
        digest = hashlib.sha256()
        with partial.open("wb") as file:
            file.write(encode_header(infos, {**about, "data_sha256": "0" * 64}))
            for block in blocks:
                file.write(block)
                digest.update(block)
            file.seek(0)
            file.write(encode_header(infos, {**about, "data_sha256": digest.hexdigest()}))

    try:
        write_with(target, write)
    except OSError as error:
        raise disk_failure(error, str(target)) from error
