"""What the `tokenizers` library does not check itself of files from elsewhere.

It is written in Rust: where memory is short the whole process ends, and where an index is wrong it
panics, which Python sees as an exception that is no Exception.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from typing import Any, cast

import msgspec
import numpy as np

from cambrian.errors import BrokenFile, CambrianError

GROWTH = 1000  # how many times as long replacements may make a text
LONGEST = 1000  # bytes that one character may be normalised to; Unicode's longest has 33


class Outline(msgspec.Struct):
    """The parts of a tokenizer.json that are read beside the library."""

    normalizer: Any = None
    decoder: Any = None
    post_processor: Any = None


@contextmanager
def refusing(what: str, kind: type[CambrianError] = BrokenFile) -> Generator[None]:
    """Turn whatever the library raises into one sentence that begins with `what`."""
    try:
        yield
    except (CambrianError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic is nothing narrower
        raise kind(f"{what} ({' '.join(str(error).split())[:300]}).") from error


def outline(raw: bytes) -> Outline:
    """Read the outline; ValueError unless the library can be given the whole."""
    found = msgspec.json.decode(raw, type=Outline)
    for part in (found.normalizer, found.decoder):
        growth = 1.0
        for step in _steps(part):
            if step.get("type") == "Precompiled":
                require_charsmap(base64.b64decode(step["precompiled_charsmap"]))
            elif step.get("type") == "Replace":
                growth *= _growth(step["pattern"], step["content"])
        if growth > GROWTH:
            raise ValueError(f"its replacements make a text {growth:.3g} times as long")
    return found


def require_charsmap(data: bytes) -> None:
    """ValueError unless rules of normalisation, as SentencePiece compiles them, have the form

    4 bytes: the trie's length, little-endian | the trie | texts, each with a zero after it

    and nothing in the trie points beyond either. It is a double array (Yata's darts-clone): 32 bits
    a node, of which bit 31 marks a leaf, where the rest is the place of a text.
    """
    size = int.from_bytes(data[:4], "little")
    if len(data) < 4 or size > len(data) - 4 or size % 4:
        raise ValueError("its rules of normalisation are cut short")
    texts = np.frombuffer(data, np.uint8, offset=4 + size)
    if max(map(len, texts.tobytes().split(b"\0"))) > LONGEST:
        raise ValueError("its rules of normalisation make one character a whole text")
    trie = np.frombuffer(data, "<u4", size // 4, 4).astype(np.int64)
    nodes = np.flatnonzero(trie < 1 << 31)
    known = trie[nodes]
    below = nodes ^ ((known >> 10) << ((known & 1 << 9) >> 6))
    if not size or (below | 0xFF).max(initial=0) >= len(trie):
        raise ValueError("its rules of normalisation lead nowhere")
    places = trie[below[known >> 8 & 1 == 1]] & ~(1 << 31)
    if places.max(initial=-1) >= len(texts) or (texts[places] & 0xC0 == 0x80).any():
        raise ValueError("its rules of normalisation lead nowhere")


def require_dense(ids: Collection[Any], origin: str) -> None:
    """BrokenFile unless numbers of tokens leave few gaps: each is a row of the embeddings, and the
    library walks over all of them."""
    if not all(type(number) is int for number in ids):
        raise BrokenFile(f"{origin} gives a token an id that is no whole number.")
    if ids and max(ids) >= 2 * len(ids) + 1024:
        raise BrokenFile(
            f"{origin} gives {len(ids)} tokens ids as high as {max(ids)}; a model for it would "
            "consist of unused embeddings."
        )


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """All objects in a part of a tokenizer.json."""
    if isinstance(part, dict):
        yield cast(dict[str, Any], part)
        part = list(cast(dict[str, Any], part).values())
    if isinstance(part, list):
        for item in cast(list[Any], part):
            yield from _steps(item)


def _growth(pattern: Any, content: str) -> float:
    """How many times as long a replacement can make a text; an expression may match nothing."""
    found = pattern.get("String") if isinstance(pattern, dict) else None
    return max(1.0, len(content) / len(found)) if found else 1.0 + len(content)
