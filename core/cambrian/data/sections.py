"""From the pieces in which documents are read to clean sections of bounded size."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, TypeAlias, cast

from cambrian.data.config import ExampleData, TextData
from cambrian.data.sources import Chunk

Form: TypeAlias = Literal["NFC", "NFD", "NFKC", "NFKD"]
SECTION = 4 << 10  # characters; the size that is aimed at
LIMIT = 64 << 10  # characters; no section is longer

# Where a document may be cut without changing its tokens. GPT-2's pattern (`\s+(?!\S)|\s+`, and
# " ?" before words) makes a single newline before a word a token of its own, so no merge crosses
# it. Of a longer run of blanks the last one stands apart, and a single space goes with the word
# behind it: cutting before those changes nothing either.
_NEWLINE = re.compile(r"(?<=\S)\n(?=\S)|\n(?=\n\S)")
_SPACE = re.compile(r"(?<=\S)(?= \S)")

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]+")
_TRAILING = re.compile(r"(?<![ \t])[ \t]++(?=\n)")


class Section(NamedTuple):
    """A stretch of one document: `first` begins it, `last` ends it."""

    text: str
    first: bool
    last: bool


def sections(chunks: Iterable[Chunk], data: TextData) -> Iterator[Section]:
    """Clean documents and cut them; where they are cut depends on the document alone."""
    raw, text, first = "", "", True
    for chunk, last in chunks:
        raw += chunk
        end = len(raw) if last else _whole_lines(raw)
        text += tidy(raw[:end], data)
        raw = raw[end:]
        if last and data.clean:
            text = text.rstrip(" \t")
        start = 0
        while (left := len(text) - start) > (SECTION if last else LIMIT):
            if (cut := _cut(text, start)) - start == left:
                break
            yield Section(text[start:cut], first, False)
            start, first = cut, False
        text = text[start:]
        if last:
            yield Section(text, first, True)
            text, first = "", True


def tidy(text: str, data: TextData | ExampleData) -> str:
    """Apply the settings `clean` and `normalize` to whole lines."""
    if data.clean:
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        text = _CONTROL.sub("", text)
    if data.normalize:
        text = unicodedata.normalize(cast("Form", data.normalize), text)
    if data.clean and (" \n" in text or "\t\n" in text):
        text = _TRAILING.sub("", text)
    return text


def _whole_lines(raw: str) -> int:
    """Where the last line begins; in a line without end, the blanks before the last word."""
    return raw.rfind("\n") + 1 or len(raw[: raw.rfind(" ") + 1].rstrip(" \t")) or len(raw)


def _cut(text: str, start: int) -> int:
    """The end of the section that begins at `start`."""
    low, high = start + SECTION, min(start + LIMIT, len(text))
    match = _NEWLINE.search(text, low, high) or _SPACE.search(text, low, high)
    return match.end() if match else high
