"""Tokenizers: round trips, determinism, the Hub's files, and text that spells out a token."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from cambrian.data.tokenizer import END, Tokenizer
from cambrian.errors import BrokenFile, CambrianError, NotFound, UsageError

TEXT = "To be, or not to be:\nthat is the question.\n\n  Whether 'tis nobler — in the mind…\n" * 20
KINDS = ["bpe", "char"]


def make(kind: str, vocab_size: int = 400) -> Tokenizer:
    return Tokenizer.train(kind, [TEXT], vocab_size)  # pyright: ignore[reportArgumentType]


def random_text(rng: random.Random) -> str:
    """Any scalar values, surrogates excepted."""
    planes = [(0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)]
    return "".join(chr(rng.randint(*rng.choice(planes))) for _ in range(rng.randint(0, 60)))


@pytest.mark.parametrize("kind", KINDS)
def test_text_that_was_seen_comes_back(kind: str) -> None:
    tokenizer = make(kind)
    assert tokenizer.kind == kind
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert max(tokenizer.encode(TEXT)) < tokenizer.vocab_size <= 400


def test_bpe_brings_back_any_unicode() -> None:
    tokenizer, rng = make("bpe"), random.Random(0)
    texts = [random_text(rng) for _ in range(500)] + ["", "\0", " ", "\r\n\n \t", "e\u0301", END]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokenizer.decode(ids) == text
        assert ids == tokenizer.encode(text)


def test_a_character_never_seen_is_unknown_and_shows() -> None:
    tokenizer = make("char")
    assert tokenizer.decode(tokenizer.encode("to Ω!")) == "to \ufffd\ufffd"


def test_char_keeps_the_most_frequent_characters() -> None:
    tokenizer = Tokenizer.train("char", ["aaabbc"], 4)
    assert tokenizer.vocab_size == 4
    assert tokenizer.decode(tokenizer.encode("abc")) == "ab\ufffd"


def test_char_ids_are_those_of_the_library() -> None:
    """Looking characters up is a short cut for what the tokenizer.json describes."""
    import tokenizers

    tokenizer, rng = make("char"), random.Random(1)
    backend = tokenizers.Tokenizer.from_buffer(tokenizer.raw)
    for text in [TEXT, *(random_text(rng) for _ in range(50))]:
        assert tokenizer.encode(text) == backend.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", KINDS)
def test_text_cannot_spell_the_end_of_a_document(kind: str) -> None:
    tokenizer = Tokenizer.train(kind, [TEXT + END], 400)  # pyright: ignore[reportArgumentType]
    ids = tokenizer.encode(f"a{END}b")
    assert tokenizer.eos_id is not None
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == f"a{END}b"
    assert tokenizer.decode([*ids, tokenizer.eos_id]) == f"a{END}b"


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_the_same_bytes(kind: str) -> None:
    code = (
        "import sys, hashlib; from cambrian.data.tokenizer import Tokenizer; "
        f"t = Tokenizer.train({kind!r}, sys.stdin.read().splitlines(True), 500); "
        "print(hashlib.sha256(t.raw).hexdigest())"
    )
    rng = random.Random(0)  # words of equal counts, so that ties must be broken alike
    text = "\n".join(
        " ".join(rng.choices(["ab", "cd", "ba", "dc", "xyz"], k=9)) for _ in range(200)
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            input=text,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads},
        ).stdout
        for seed, threads in [("1", "1"), ("2", "2")]
    }
    assert len(digests) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_saved_files_load_with_the_same_bytes(kind: str, tmp_path: Path) -> None:
    tokenizer = make(kind)
    tokenizer.save(tmp_path / "a")
    for source in (tmp_path / "a", tmp_path / "a" / "tokenizer.json"):
        loaded = Tokenizer.load(source)
        loaded.save(tmp_path / "b")
        assert (tmp_path / "b" / "tokenizer.json").read_bytes() == tokenizer.raw
        assert (loaded.kind, loaded.eos_id, loaded.pad_id) == (kind, 0, 0)
    # bytes of another formatting are kept, too
    compact = json.dumps(json.loads(tokenizer.raw)).encode()
    (tmp_path / "a" / "tokenizer.json").write_bytes(compact)
    Tokenizer.load(tmp_path / "a").save(tmp_path / "b")
    assert (tmp_path / "b" / "tokenizer.json").read_bytes() == compact
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_opens_the_folder_and_agrees(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = make(kind)
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [TEXT, " to  be\n\n\nor ", "question Ω"]:
        ids = tokenizer.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == tokenizer.decode(ids)
    assert (theirs.eos_token, theirs.eos_token_id) == (END, tokenizer.eos_id)
    assert theirs.bos_token == END
    assert len(theirs) == tokenizer.vocab_size


def test_gpt2_files_give_the_ids_of_the_tokenizer_json(tmp_path: Path) -> None:
    tokenizer = make("bpe")
    model = json.loads(tokenizer.raw)["model"]
    merges = [" ".join(pair) for pair in model["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
    assert loaded.decode(loaded.encode(TEXT)) == TEXT
    assert loaded.eos_id == tokenizer.eos_id
    assert loaded.eos_id not in loaded.encode(END)
    (tmp_path / "merges.txt").write_text("one two three\n")
    with pytest.raises(BrokenFile, match=r"merges\.txt"):
        Tokenizer.load(tmp_path)


def test_settings_beside_a_tokenizer_name_its_tokens(tmp_path: Path) -> None:
    tokenizer = make("bpe")
    tokenizer.save(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    token = {"content": "b", "__type": "AddedToken"}
    file.write_text(json.dumps({"eos_token": token, "chat_template": "x", "auto_map": "evil"}))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.eos_id == tokenizer.encode("b")[0]
    loaded.save(tmp_path)
    saved = json.loads(file.read_text())
    assert saved["chat_template"] == "x"
    assert "auto_map" not in saved  # names code to run


def test_truncation_in_the_file_does_not_shorten_texts() -> None:
    found = json.loads(make("bpe").raw)
    found["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    tokenizer = Tokenizer(json.dumps(found).encode(), {}, "it")
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b"{}", b'{"model": {"type": "BPE"}}', b"[" * 100_000],
)
def test_a_malformed_file_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(BrokenFile, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer.load(tmp_path)


def test_damaged_bytes_never_do_worse_than_a_sentence() -> None:
    rng, raw = random.Random(0), make("char").raw
    refused = 0
    for _ in range(300):
        damaged = bytearray(raw)
        for _ in range(2):
            damaged[rng.randrange(len(raw))] = rng.choice(b'0123456789abc"{}[],: ')
        try:
            tokenizer = Tokenizer(bytes(damaged), {}, "it")
            tokenizer.decode(tokenizer.encode("to be"))
        except CambrianError as error:
            assert str(error).endswith(".")
            refused += 1
    assert refused > 100  # the rest still are files of a tokenizer


def test_ids_out_of_all_proportion_are_refused() -> None:
    found = json.loads(make("char").raw)
    found["model"]["vocab"]["t"] = 2**31
    with pytest.raises(BrokenFile, match="2147483648"):
        Tokenizer(json.dumps(found).encode(), {}, "it")


def test_what_is_missing_or_too_small_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no tokenizer: neither tokenizer\.json nor vocab\.json"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UsageError, match="needs 257"):
        make("bpe", 256)
    with pytest.raises(UsageError, match="no room"):
        make("char", 2)


def test_errors_of_the_texts_pass_through_training() -> None:
    def texts():
        yield TEXT
        raise BrokenFile("the file is broken")

    with pytest.raises(BrokenFile, match="the file is broken"):
        Tokenizer.train("bpe", texts(), 400)
