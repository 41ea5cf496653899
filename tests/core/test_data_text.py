"""prepare_text: what becomes of documents, on which side, and what is kept."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cambrian.data import text as module
from cambrian.data.config import TextData
from cambrian.data.corpus import rank
from cambrian.data.sections import sections
from cambrian.data.text import TextStore, prepare_text
from cambrian.data.tokenizer import END, Tokenizer
from cambrian.errors import BrokenFile, CambrianError, NotFound, UsageError
from cambrian.specs import DatasetEntry

WORDS = ["the", "of", "and", "to", "a", "in", "that", "is", "was", "he", "for", "it", "with", "as"]
SHAKESPEARE = Path(__file__).parents[2].parent / "shared" / "data" / "text" / "tinyshakespeare.txt"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cambrian" / "tokens"


def document(seed: int, words: int = 30) -> str:
    rng = random.Random(seed)
    text = " ".join(rng.choices(WORDS, k=words))
    return f"{seed}: {text}"


def write(folder: Path, *texts: str) -> TextData:
    """One file a document, all long settled."""
    folder.mkdir(exist_ok=True)
    for i, text in enumerate(texts):
        file = folder / f"{i:04d}.txt"
        file.write_text(text, "utf-8")
        os.utime(file, (1e9, 1e9))
    return TextData(source=(str(folder),), tokenizer="char", validation_fraction=0.25)


def prepare(data: TextData, tokenizer: Tokenizer | None = None) -> TextStore:
    return prepare_text(data, tokenizer, datasets={})


def split(store: TextStore) -> tuple[list[str], list[str]]:
    """The documents on each side, told apart by the end that follows each."""
    sides = []
    for tokens in (store.train, store.validation):
        texts, ids = [], [] if tokens is None else tokens.tolist()
        while ids:
            end = ids.index(store.tokenizer.eos_id)
            texts.append(store.tokenizer.decode(ids[:end]))
            ids = ids[end + 1 :]
        sides.append(texts)
    return sides[0], sides[1]


def both(store: TextStore) -> list[str]:
    """All documents."""
    train, validation = split(store)
    return train + validation


def test_every_document_is_kept_whole_on_one_side(tmp_path: Path) -> None:
    texts = [document(i) for i in range(200)]
    store = prepare(write(tmp_path / "t", *texts))
    train, validation = split(store)
    assert sorted(train + validation) == sorted(texts)
    assert 25 <= len(validation) <= 75  # a quarter
    assert store.train.dtype == np.uint16
    summary = store.summary
    assert summary["documents"] == summary["files"] == 200
    assert summary["duplicates"] == 0
    assert summary["tokens"] == {"train": len(store.train), "validation": len(store.validation)}
    assert sum(summary["characters"].values()) == sum(map(len, texts))
    json.dumps(summary)


def test_the_side_depends_on_the_content_alone(tmp_path: Path) -> None:
    texts = [document(i) for i in range(60)]
    _, validation = split(prepare(write(tmp_path / "a", *texts)))
    shuffled = random.Random(0).sample(texts, 60)
    _, again = split(prepare(write(tmp_path / "b", *shuffled)))
    assert sorted(again) == sorted(validation)
    more = [document(i) for i in range(100, 150)]
    _, among = split(prepare(write(tmp_path / "c", *more, *shuffled)))
    assert set(among) & set(texts) == set(validation)


def test_one_long_file_has_held_out_sections(tmp_path: Path) -> None:
    text = "".join(document(i) + "\n" for i in range(20_000))
    store = prepare(write(tmp_path / "t", text))
    assert store.validation is not None
    ends = [(tokens == 0).sum() for tokens in (store.train, store.validation)]
    assert sum(ends) == 1  # one document, one end
    parts = [store.tokenizer.decode(t.tolist()) for t in (store.train, store.validation)]
    assert sum(map(len, parts)) == len(text)
    lines = [set(part.splitlines()) for part in parts]
    assert lines[0] | lines[1] == set(text.splitlines())
    assert not lines[0] & lines[1]
    assert 0.15 < len(parts[1]) / len(text) < 0.35
    last_side = int(lines[1] >= {document(19_999)})
    assert ends[last_side] == 1
    assert (store.train, store.validation)[last_side][-1] == 0


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_text_that_spells_an_end_ends_nothing(kind: str, tmp_path: Path) -> None:
    texts = [f"{END}{document(i)}{END}more" for i in range(40)]
    store = prepare(replace(write(tmp_path / "t", *texts), tokenizer=kind, vocab_size=400))
    train, validation = split(store)
    assert sorted(train + validation) == sorted(texts)


def test_equal_documents_are_kept_once(tmp_path: Path) -> None:
    texts = [document(i % 40) + " " * (i // 40) for i in range(120)]  # equal after cleaning
    data = write(tmp_path / "t", *texts, " \n", "")
    store = prepare(data)
    assert sorted(both(store)) == sorted(texts[:40])
    assert (store.summary["documents"], store.summary["duplicates"]) == (40, 80)
    store = prepare(replace(data, deduplicate=False))
    assert sorted(both(store)) == sorted(texts[:40] * 3)
    assert (store.summary["documents"], store.summary["duplicates"]) == (120, 0)


def test_a_long_document_that_comes_twice_adds_nothing(tmp_path: Path) -> None:
    text = "".join(document(i) + "\n" for i in range(1500))
    once = prepare(write(tmp_path / "a", text))
    twice = prepare(write(tmp_path / "b", text, text))
    np.testing.assert_array_equal(twice.train, once.train)
    assert twice.summary["documents"] == 1
    assert twice.summary["duplicates"] > 3


def test_a_document_ends_where_its_last_new_section_does(tmp_path: Path) -> None:
    text = "".join(document(i) + "\n" for i in range(1500))
    tail = list(sections([(text, True)], TextData()))[-1].text
    assert len(tail) < len(text) / 2
    store = prepare(write(tmp_path / "t", tail, text))
    assert store.summary["duplicates"] == 1
    assert sum((tokens == 0).sum() for tokens in (store.train, store.validation)) == 2


def test_given_validation_text_leaves_all_of_the_source_to_training(tmp_path: Path) -> None:
    data = write(tmp_path / "t", *[document(i) for i in range(30)])
    write(tmp_path / "v", *[document(i) for i in range(25, 35)])
    store = prepare(replace(data, validation=(str(tmp_path / "v"),)))
    train, validation = split(store)
    assert train == [document(i) for i in range(30)]
    assert validation == [document(i) for i in range(30, 35)]  # none that was trained on
    assert store.summary["duplicates"] == 5
    with pytest.raises(UsageError, match=r"none that .* lacks"):
        prepare(replace(data, validation=data.source))


def test_no_validation_on_request(tmp_path: Path) -> None:
    data = replace(write(tmp_path / "t", document(0)), validation_fraction=0)
    for _ in range(2):
        store = prepare(data)
        assert store.validation is None
        assert store.summary["tokens"]["validation"] == 0


def test_a_short_corpus_holds_out_its_section_of_the_lowest_rank(tmp_path: Path) -> None:
    texts = [document(n).partition(": ")[2] for n in range(4)]
    lowest = min(texts, key=lambda t: rank(hashlib.blake2b(t.encode(), digest_size=16).digest()))
    for name, order in (("a", texts), ("b", texts[::-1])):
        data = write(tmp_path / name, *order)
        # No content falls below this share of all ranks by itself.
        store = prepare(replace(data, validation_fraction=1e-9))
        assert store.validation is not None
        assert store.tokenizer.decode(store.validation[:-1].tolist()) == lowest


def test_empty_splits_say_what_to_do(tmp_path: Path) -> None:
    data = write(tmp_path / "t", document(0))
    with pytest.raises(UsageError, match=r"too short.*data\.validation_fraction=0"):
        prepare(replace(data, validation_fraction=1e-9))
    with pytest.raises(UsageError, match=r"lower data\.validation_fraction=0\.999"):
        prepare(replace(data, validation_fraction=0.999999))
    (tmp_path / "e").mkdir()
    for tokenizer in ("bpe", "char"):
        with pytest.raises(UsageError, match="There is no text in"):
            prepare(replace(data, source=(str(tmp_path / "e"),), tokenizer=tokenizer))


def test_settings_that_make_no_sense(tmp_path: Path) -> None:
    data = write(tmp_path / "t", document(0))
    for change, message in [
        ({"source": ()}, "data.source is empty"),
        ({"validation_fraction": 1.0}, "is no fraction"),
        ({"normalize": "NFX"}, "no Unicode form"),
        ({"tokenizer": "bpee"}, r"is neither bpe, .*Did you mean 'bpe'"),
        ({"tokenizer": "bpe", "vocab_size": 10}, "needs 257"),
    ]:
        with pytest.raises(UsageError, match=message):
            prepare(replace(data, **change))  # pyright: ignore[reportArgumentType]


def test_binary_files_of_a_folder_are_left_out_but_named_ones_fail(tmp_path: Path) -> None:
    data = write(tmp_path / "t", *[document(i) for i in range(40)])
    (tmp_path / "t" / "image.png").write_bytes(b"\x89PNG\0\0")
    assert prepare(data).summary["files"] == 40
    with pytest.raises(BrokenFile, match=r"image\.png is not UTF-8 at byte 0"):
        prepare(replace(data, source=(str(tmp_path / "t" / "image.png"),)))


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_a_broken_file_leaves_nothing_behind(kind: str, tmp_path: Path, cache: Path) -> None:
    data = write(tmp_path / "t", *[document(i) for i in range(9)], "x")
    (tmp_path / "t" / "0009.txt").write_bytes(b"abc\xff")
    with pytest.raises(BrokenFile, match=r"0009\.txt is not UTF-8 at byte 3"):
        prepare(replace(data, tokenizer=kind))
    assert list(cache.iterdir()) == []


def test_the_second_run_reads_no_text(tmp_path: Path) -> None:
    """Were a file read again, its other content (of one size, time and inode) would show."""
    data = write(tmp_path / "t", *[document(i) for i in range(40)])
    first = prepare(data)
    for file in (tmp_path / "t").iterdir():
        size = file.stat().st_size
        file.write_bytes(b"x" * size)
        os.utime(file, (1e9, 1e9))
    second = prepare(data)
    assert (first.summary["cache_hit"], second.summary["cache_hit"]) == (False, True)
    np.testing.assert_array_equal(first.train, second.train)
    assert {**second.summary, "cache_hit": False} == first.summary
    assert second.tokenizer.raw == first.tokenizer.raw


def test_a_changed_file_is_noticed_even_within_the_clocks_grain(tmp_path: Path) -> None:
    data = write(tmp_path / "t", *[document(i) for i in range(40)])
    first = prepare(data)
    file = tmp_path / "t" / "0000.txt"
    for content in ("first", "other"):  # of one size, and perhaps of one time: not remembered
        file.write_text(content)
        store = prepare(data)
        assert not store.summary["cache_hit"]
        assert content in both(store)
        assert store.summary["content_sha256"] != first.summary["content_sha256"]


def test_settings_and_tokenizers_have_their_own_cache(tmp_path: Path) -> None:
    data = write(tmp_path / "t", *[f"{document(i)} e\u0301" for i in range(40)])
    other = Tokenizer.train("bpe", [document(0)], 300)
    assert not prepare(data).summary["cache_hit"]
    for change in (
        {"normalize": ""},
        {"clean": False},
        {"validation_fraction": 0.3},
        {"tokenizer": "bpe"},
        {"tokenizer": "bpe", "vocab_size": 300},
    ):
        assert not prepare(replace(data, **change)).summary["cache_hit"]  # pyright: ignore[reportArgumentType]
    assert not prepare(data, other).summary["cache_hit"]
    hit = prepare(data, other)
    assert hit.summary["cache_hit"]
    assert hit.tokenizer is other
    other.save(tmp_path / "tokenizer")
    for path in ("tokenizer", "tokenizer/tokenizer.json"):
        assert prepare(replace(data, tokenizer=str(tmp_path / path))).summary["cache_hit"]


def test_moved_text_is_known_again(tmp_path: Path) -> None:
    data = write(tmp_path / "t", *[document(i) for i in range(40)])
    prepare(data)
    shutil.move(tmp_path / "t", tmp_path / "u")
    assert prepare(replace(data, source=(str(tmp_path / "u"),))).summary["cache_hit"]


@pytest.mark.parametrize("damage", ["train.bin", "validation.bin", "meta.json", "tokenizer.json"])
def test_a_damaged_cache_is_made_again(damage: str, tmp_path: Path, cache: Path) -> None:
    data = write(tmp_path / "t", *[document(i) for i in range(40)])
    first = prepare(data)
    (file,) = cache.glob(f"*/{damage}")
    whole = file.read_bytes()
    file.write_bytes(whole[:-2])
    second = prepare(data)
    assert not second.summary["cache_hit"]
    assert file.read_bytes() == whole
    np.testing.assert_array_equal(first.train, second.train)
    assert prepare(data).summary["cache_hit"]


def test_a_damaged_table_of_hashes_costs_time_alone(tmp_path: Path, cache: Path) -> None:
    data = write(tmp_path / "t", *[document(i) for i in range(40)])
    prepare(data)
    (cache.parent / "hashes.sqlite").write_bytes(b"no table" * 1000)
    assert prepare(data).summary["cache_hit"]


def test_what_killed_runs_left_is_removed_in_time(tmp_path: Path, cache: Path) -> None:
    data = write(tmp_path / "t", *[document(i) for i in range(40)])
    for name, age in [("old", 2 * 86400), ("young", 60)]:
        folder = cache / f".{name}.partial-1"
        folder.mkdir(parents=True)
        (folder / "train.bin").write_bytes(b"x")
        for path in (folder / "train.bin", folder):
            os.utime(path, (time.time() - age,) * 2)
    prepare(data)
    assert sorted(p.name[:9] for p in cache.glob(".*")) == [".young.pa"]


def test_two_processes_at_once_both_end_well(tmp_path: Path, cache: Path) -> None:
    data = write(tmp_path / "t", *[document(i, 400) for i in range(300)])
    code = (
        "import sys, hashlib, os, time\n"
        "from cambrian.data.text import prepare_text; from cambrian.data.config import TextData\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "data = TextData(source=(sys.argv[1],), vocab_size=400)\n"
        "store = prepare_text(data, datasets={})\n"
        "print(hashlib.sha256(store.train.tobytes() + store.validation.tobytes()).hexdigest())"
    )
    for damaged in (False, True):
        if damaged:
            (made,) = cache.iterdir()
            (made / "train.bin").write_bytes(b"")
        children = [
            subprocess.Popen(
                [sys.executable, "-c", code, *data.source],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(3)
        ]
        for child in children:
            assert child.stdout.readline() == "ready\n"
        for child in children:
            child.stdin.write("\n")
            child.stdin.flush()
        results = [child.communicate(timeout=100) for child in children]
        assert len({out for out, _ in results}) == 1, results
        assert [
            (child.returncode, err) for child, (_, err) in zip(children, results, strict=True)
        ] == [(0, "")] * 3
        assert len(list(cache.iterdir())) == 1


def test_standard_input_is_prepared_and_not_kept(tmp_path: Path, cache: Path) -> None:
    text = "".join(document(i) + "\n" for i in range(3000))
    code = (
        "from cambrian.data.text import prepare_text; from cambrian.data.config import TextData\n"
        "store = prepare_text(TextData(source=('-',), tokenizer='char'), datasets={})\n"
        "print(store.summary['characters'], store.summary['cache_hit'])"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code], input=text, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    store = prepare(
        replace(write(tmp_path / "t", text), tokenizer="char", validation_fraction=0.05)
    )
    assert outputs == [f"{store.summary['characters']} {hit}\n" for hit in (False, True)]
    assert store.summary["cache_hit"]  # the same text from a file
    assert len(list(cache.iterdir())) == 1


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "t", *[document(i) for i in range(40)])

    def progress(phase: str, done: int, total: int) -> None:
        if phase == "tokens":
            (tmp_path / "t" / "0003.txt").write_text("something else")

    with pytest.raises(CambrianError, match=r"0003\.txt changed while it was read"):
        prepare_text(data, datasets={}, progress=progress)


def test_progress_goes_up_to_the_end_of_every_phase(tmp_path: Path) -> None:
    data = write(tmp_path / "t", "".join(document(i) + "\n" for i in range(20000)), document(0))
    seen: dict[str, list[tuple[int, int]]] = {}
    prepare_text(
        data,
        datasets={},
        progress=lambda p, done, total: seen.setdefault(p, []).append((done, total)),
    )
    assert list(seen) == ["hashing", "tokenizer", "tokens"]
    for steps in seen.values():
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)
        assert len(steps) > 3
        assert len({total for _, total in steps}) == 1
        assert steps[-1][0] == steps[-1][1]


def test_the_tokenizer_sees_a_bounded_sample_of_training_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write(tmp_path / "t", *[document(i) for i in range(60)], "Ω" + document(60))
    _, validation = split(prepare(replace(data, tokenizer="bpe", vocab_size=300)))
    known = prepare(data).tokenizer
    assert all("\ufffd" not in known.decode(known.encode(str(i))) for i in range(10))
    only_held_out = replace(data, source=(str(tmp_path / "t"), str(tmp_path / "h.txt")))
    for i in range(1000):  # a document that is held out, with a character of its own
        (tmp_path / "h.txt").write_text(f"Ж{i}")
        if "Ж" not in (t := prepare(only_held_out).tokenizer).decode(t.encode("Ж")):
            break
    else:
        pytest.fail("the tokenizer knows held-out text")
    assert len(validation) > 3
    monkeypatch.setattr(module, "SAMPLE", 500)
    assert prepare(data).tokenizer.vocab_size < known.vocab_size  # never met the Ω


def test_a_large_vocabulary_takes_wider_tokens(tmp_path: Path) -> None:
    characters = [chr(0x4E00 + i) for i in range(20_000)] + [chr(0xAC00 + i) for i in range(11_000)]
    characters += [chr(0x20000 + i) for i in range(40_000)]
    text = "".join(c + "\n" * (i % 40 == 39) for i, c in enumerate(characters))
    data = replace(write(tmp_path / "t", text), vocab_size=100_000, validation_fraction=0)
    store = prepare(data)
    assert store.train.dtype == np.uint32
    assert store.tokenizer.decode(store.train.tolist()) == text
    assert int(store.train.max()) >= 1 << 16


def test_a_tokenizer_without_an_end_joins_documents(tmp_path: Path) -> None:
    found = json.loads(Tokenizer.train("bpe", [document(0)], 300).raw)
    found["added_tokens"] = []
    del found["model"]["vocab"][END]
    tokenizer = Tokenizer(json.dumps(found).encode(), {}, "it")
    assert tokenizer.eos_id is None
    data = replace(write(tmp_path / "t", "one", "two"), validation_fraction=0)
    store = prepare(data, tokenizer)
    assert tokenizer.decode(store.train.tolist()) == "onetwo"


def test_an_embedded_data_set_needs_no_file() -> None:
    name = "python-reference"
    source = ("python:pydoc_data.topics:topics",)
    datasets = {name: DatasetEntry(name=name, kind="text", source=source)}
    store = prepare_text(TextData(), datasets=datasets)
    assert store.validation is not None
    assert len(store.validation) > 2000
    assert store.summary["documents"] > 50
    assert prepare_text(TextData(), datasets=datasets).summary["cache_hit"]
    with pytest.raises(NotFound, match=f"Did you mean '{name}'"):
        prepare_text(TextData(source=("python-refrence",)), datasets=datasets)


@pytest.mark.skipif(not SHAKESPEARE.is_file(), reason="needs ../shared/data")
def test_shakespeare_by_characters() -> None:
    store = prepare(TextData(source=(str(SHAKESPEARE),), tokenizer="char", clean=False))
    assert sum(store.summary["characters"].values()) == 1_115_394
    assert store.tokenizer.vocab_size == 65 + 2
    assert 0.02 < len(store.validation) / len(store.train) < 0.12
