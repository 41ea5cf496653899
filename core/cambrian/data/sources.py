"""Where text comes from: files, folders, globs, standard input and named data sets.

A source yields chunks (text, last): pieces of documents in order, `last` with the piece that ends
its document. Nothing here holds more than one piece, however long the document is.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import hashlib
import io
import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

from cambrian.errors import BrokenFile, CambrianError, NotFound, UsageError, nearest
from cambrian.specs import PYTHON, DatasetEntry, Ref

Chunk: TypeAlias = tuple[str, bool]
Report: TypeAlias = Callable[[int], None]  # told the position in the file on disk
CHUNK = 1 << 20  # bytes
RECORD = 64 << 20  # bytes; a JSONL record is parsed as a whole
HEAD = 8 << 10  # bytes in which a NUL tells a binary file, as git does
STDIN = "-"


@dataclass(frozen=True, slots=True)
class File:
    """A file on disk: UTF-8 text (one document), or JSONL by its name; either may be gzipped.

    A file that was only found in a folder is left out where it turns out to be `binary`.
    """

    path: str
    name: str
    found: bool = False

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.stat().st_size

    @property
    def form(self) -> str:
        """How the bytes are read: "text" or "jsonl", with "+gzip"."""
        plain = self.path.lower().removesuffix(".gz")
        form = "jsonl" if plain.endswith((".jsonl", ".ndjson")) else "text"
        return form + "+gzip" * self.gzipped

    @property
    def gzipped(self) -> bool:
        """Whether the name says so."""
        return self.path.lower().endswith(".gz")

    def stat(self) -> os.stat_result:
        """The file's status; UsageError if it cannot be had."""
        try:
            return Path(self.path).stat()
        except OSError as error:
            raise UsageError(f"Cannot read {self.name}: {error.strerror}.") from error

    def state(self) -> str:
        """What changes with the content: size, modification time and inode."""
        status = self.stat()
        return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"

    def require(self, state: str) -> None:
        """CambrianError if the file's state is another by now."""
        if self.state() != state:
            raise CambrianError(
                f"{self.name} changed while it was read; run again once it is whole."
            )

    def hash(self, report: Report) -> tuple[str, bool]:
        """Read it whole and return (sha256 in hex, whether it is binary)."""
        digest = hashlib.sha256()
        try:
            with self._open() as stream:
                binary = b"\0" in stream.read(HEAD)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            binary = False  # broken rather than binary: reading it will say so
        except OSError as error:
            raise UsageError(f"Cannot read {self.name}: {error.strerror}.") from error
        with Path(self.path).open("rb") as raw:
            while data := raw.read(CHUNK):
                digest.update(data)
                report(raw.tell())
        return digest.hexdigest(), binary

    def chunks(self, text_key: str, report: Report) -> Iterator[Chunk]:
        """Read the documents; BrokenFile says where the file is not what its name says."""
        try:
            with Path(self.path).open("rb") as raw:
                stream = gzip.GzipFile(fileobj=raw) if self.gzipped else raw
                told = _telling(stream, lambda: report(raw.tell()))
                if self.form.startswith("jsonl"):
                    yield from _records(stream, self.name, text_key, told)
                else:
                    yield from _text(stream, self.name, told)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BrokenFile(f"{self.name} is not a whole gzip file ({error}).") from error
        except OSError as error:
            raise UsageError(f"Cannot read {self.name}: {error.strerror}.") from error

    def lines(self, ends: bool = False) -> Iterator[str]:
        """Read the text line by line, with or without their ends; BrokenFile if it is no UTF-8."""
        number = 0
        try:
            with self._open() as stream:
                for number, line in enumerate(iter(lambda: stream.readline(RECORD + 1), b""), 1):
                    if len(line) > RECORD:
                        raise BrokenFile(
                            f"{self.name}, line {number} has more than {RECORD >> 20} MiB; is this "
                            "text?"
                        )
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                    yield text if ends else text.rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise BrokenFile(
                f"{self.name}, line {number} is not UTF-8 ({error.reason}); convert it, for "
                "instance with iconv, or leave it out."
            ) from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BrokenFile(f"{self.name} is not a whole gzip file ({error}).") from error
        except OSError as error:
            raise UsageError(f"Cannot read {self.name}: {error.strerror}.") from error

    def _open(self) -> io.BufferedIOBase:
        return gzip.open(self.path) if self.gzipped else Path(self.path).open("rb")


@dataclass(frozen=True, slots=True, eq=False)
class Strings:
    """A mapping of strings in a Python package: each value a document, in the order of keys."""

    name: str
    texts: Mapping[str, str]

    @property
    def size(self) -> int:
        """Characters."""
        return sum(map(len, self.texts.values()))

    form = "strings"

    def hash(self, report: Report) -> str:
        """The sha256 over all values, each behind its length."""
        digest = hashlib.sha256()
        for text, _ in self.chunks("", report):
            data = text.encode("utf-8")
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()

    def chunks(self, text_key: str, report: Report) -> Iterator[Chunk]:
        """Yield the documents."""
        done = 0
        for key in sorted(self.texts):
            require_characters(self.texts[key], f"{self.name}, text '{key}'")
            done += len(self.texts[key])
            report(done)
            yield self.texts[key], True


Source: TypeAlias = File | Strings


def expand(
    items: Iterable[str], datasets: Callable[[], Mapping[str, DatasetEntry]], spool: Path
) -> Iterator[Source]:
    """Find what `items` name: a path first, then a glob, then a data set.

    Standard input is copied to a file in `spool`, since text is read more than once. NotFound if
    an item names nothing.
    """
    for item in items:
        if item == STDIN:
            yield _spooled(spool)
        elif Path(item).is_dir():
            yield from _walk(item)
        elif Path(item).exists():
            yield _file(item)
        elif matches := sorted(m for m in glob.glob(item, recursive=True) if Path(m).is_file()):  # noqa: PTH207
            yield from (File(match, _printable(match)) for match in matches)
        elif (entry := datasets().get(item)) is not None:
            yield from _dataset(entry, datasets, spool)
        else:
            raise NotFound(
                f"There is no file, folder or data set '{item}'.{nearest(item, datasets())}"
            )


def _file(path: str) -> File:
    if not Path(path).is_file():
        raise UsageError(f"{path} is no regular file; to read a pipe, give '-' and redirect it.")
    return File(path, _printable(path))


def _walk(folder: str) -> Iterator[File]:
    def fail(error: OSError) -> None:
        raise UsageError(f"Cannot read {error.filename}: {error.strerror}.")

    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in files if not name.startswith(".")):
            path = str(Path(parent, name))
            if Path(path).is_file():
                yield File(path, _printable(path), found=True)


def _spooled(spool: Path) -> File:
    spooled = spool / "standard-input"
    if spooled.exists():
        raise UsageError("Standard input ('-') can be read only once; name it once.")
    with spooled.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file, CHUNK)
    return File(str(spooled), "standard input")


def _dataset(
    entry: DatasetEntry, datasets: Callable[[], Mapping[str, DatasetEntry]], spool: Path
) -> Iterator[Source]:
    if entry.kind != "text":
        raise UsageError(f"The data set '{entry.name}' holds {entry.kind}, not text.")
    for item in entry.source:
        if item.startswith(PYTHON):
            texts: Any = Ref[Any](item.removeprefix(PYTHON)).load()
            if not _is_mapping_of_strings(texts):
                raise CambrianError(
                    f"The data set '{entry.name}' is broken: {item} is no mapping of strings."
                )
            yield Strings(entry.name, texts)
        elif item in datasets():
            raise UsageError(f"The data set '{entry.name}' may not be made of another, '{item}'.")
        else:
            yield from expand([item], datasets, spool)


def _is_mapping_of_strings(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(key, str) and isinstance(text, str)
        for key, text in cast("Mapping[Any, Any]", value).items()
    )


def _telling(stream: io.BufferedIOBase, tell: Callable[[], None]) -> Callable[[int], None]:
    """Call `tell` about once a chunk, whatever the size of the reads."""
    unreported = 0

    def read(count: int) -> None:
        nonlocal unreported
        unreported += count
        if unreported >= CHUNK:
            unreported = 0
            tell()

    return read


def _text(stream: io.BufferedIOBase, name: str, told: Report) -> Iterator[Chunk]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    while True:
        data = stream.read(CHUNK)
        told(len(data))
        if offset == 0 and data.startswith(codecs.BOM_UTF8):
            data, offset = data[3:], 3
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise BrokenFile(
                f"{name} is not UTF-8 at byte {offset - pending + error.start} ({error.reason}); "
                "convert it, for instance with iconv, or leave it out."
            ) from error
        offset += len(data)
        yield text, not data
        if not data:
            return


def _records(stream: io.BufferedIOBase, name: str, text_key: str, told: Report) -> Iterator[Chunk]:
    number = 0
    while line := stream.readline(RECORD + 1):
        number += 1
        told(len(line))
        where = f"{name}, line {number}"
        if len(line) > RECORD:
            raise BrokenFile(f"{where}: a record of more than {RECORD >> 20} MiB; split it.")
        if line.isspace():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BrokenFile(f"{where}: not a JSON record ({error}).") from error
        text = cast("Any", record).get(text_key) if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise BrokenFile(
                f"{where}: the record has no text in '{text_key}'; name the field that holds it "
                "with data.text_key."
            )
        if b"\\u" in line:
            require_characters(text, where)
        yield text, True


def require_characters(text: str, where: str) -> None:
    """BrokenFile if a text cannot be written down."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BrokenFile(
            f"{where}: half a surrogate pair at character {error.start}, which is no text."
        ) from error


def _printable(path: str) -> str:
    return path.encode("utf-8", "replace").decode("utf-8")
