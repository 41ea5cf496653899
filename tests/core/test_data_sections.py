"""Sections: cleaning, and cuts that change no token."""

from __future__ import annotations

import random
import time

import pytest

from cambrian.data import sections as module
from cambrian.data.config import TextData
from cambrian.data.sections import LIMIT, SECTION, Section, sections, tidy
from cambrian.data.tokenizer import Tokenizer

RAW = TextData(clean=False, normalize="")
ALPHABET = ["a", "b", "don't", ".", ",", '"', "1", "日", "e\u0301", "\u00a0", "\t"]


def noise(rng: random.Random, words: int) -> str:
    blanks = [" ", " ", " ", "\n", "\n", "\n\n", "\n\n\n", "  ", " \n", "\n ", "\t\n", "\r\n", ""]
    return "".join(rng.choice(ALPHABET) + rng.choice(blanks) for _ in range(words))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECTION", 24)
    monkeypatch.setattr(module, "LIMIT", 96)


def split(text: str, data: TextData = RAW, size: int | None = None) -> list[Section]:
    size = size or max(len(text), 1)
    chunks = [(text[i : i + size], False) for i in range(0, len(text), size)]
    return list(sections([*chunks, ("", True)], data))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("seed", range(20))
def test_cuts_change_no_token_of_byte_level_bpe(seed: int) -> None:
    """Against the ids of the whole text, by a vocabulary full of merged blanks."""
    rng = random.Random(seed)
    text = noise(rng, 600)
    # every run of blanks a token of its own, were the pattern to let it become one
    tokenizer = Tokenizer.train("bpe", [noise(rng, 600) for _ in range(5)], 600)
    parts = split(text)
    assert len(parts) > 20
    assert "".join(part.text for part in parts) == text
    ids = [i for row in tokenizer.encode_batch([part.text for part in parts]) for i in row]
    assert ids == tokenizer.encode(text)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("data", [RAW, TextData()])
def test_cuts_do_not_depend_on_how_the_file_was_read(data: TextData) -> None:
    text = "\n".join(noise(random.Random(0), 5).replace("\n", " ") for _ in range(200))
    whole = split(text, data)
    for size in [97, 150, 1000]:
        assert split(text, data, size) == whole


def test_sizes_are_bounded_whatever_the_text() -> None:
    rng = random.Random(0)
    for text in ["x" * 300_000, " " * 200_000, "word " * 50_000, "a\n" * 99_999, "é\n\n" * 70_000]:
        parts = split(text, RAW, 1 << 16)
        assert max(len(part.text) for part in parts) <= LIMIT
        assert "".join(part.text for part in parts) == text
    lines = "".join("w" * rng.randint(1, 80) + "\n" for _ in range(5000))
    parts = split(lines)
    assert all(SECTION <= len(part.text) <= SECTION + 82 for part in parts[:-1])
    assert all(part.text.endswith("\n") for part in parts)


def test_the_ends_of_documents_are_marked() -> None:
    chunks = [("one", True), ("x" * 70_000, False), ("y", True), ("", True)]
    found = list(sections(chunks, RAW))
    assert [(s.first, s.last) for s in found] == [
        (True, True),
        (True, False),
        (False, True),
        (True, True),
    ]


def test_cleaning() -> None:
    data = TextData()
    assert tidy("a\r\nb\rc\n", data) == "a\nb\nc\n"
    assert tidy("a\x00b\x1b\x7f\x85\tc", data) == "ab\tc"
    assert tidy("a \t \n  b\n \n", data) == "a\n  b\n\n"
    assert tidy("e\u0301 \ufb01", data) == "\u00e9 \ufb01"
    assert tidy("e\u0301 \ufb01", TextData(normalize="NFKC")) == "\u00e9 fi"
    raw = "a \r\n\x00e\u0301"
    assert tidy(raw, RAW) == raw
    assert "".join(s.text for s in split("end  ", data)) == "end"


def test_cleaning_takes_linear_time() -> None:
    """A pattern that backtracks would need hours for a megabyte of blanks."""
    text = " " * (1 << 20) + "x\n" + "\t \n"
    start = time.perf_counter()
    assert tidy(text, TextData()).endswith("x\n\n")
    assert time.perf_counter() - start < 5
