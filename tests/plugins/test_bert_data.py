"""Masks, classes and tags as BERT is trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cambrian.config import Recipe, TrainConfig
from cambrian.data import IGNORED
from cambrian.data.config import ClassData, MaskedData, PairData, TagData
from cambrian.data.tokenizer import Tokenizer
from cambrian.errors import CambrianError, UsageError
from cambrian_bert.config import BertConfig, RobertaConfig
from cambrian_bert.data import (
    BERT,
    encode_words,
    prepare_classes,
    prepare_masked,
    prepare_pairs,
    prepare_tags,
)
from cambrian_bert.masking import Masking

TEXT = "the unbelievable fox was running over fifteen lazily sleeping watchdogs " * 30


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train("wordpiece", [TEXT], 90, BERT)


def rows(tokenizer: Tokenizer, count: int, length: int) -> tuple[Any, Any]:
    """Random rows [CLS] ... [SEP] of unequal lengths, and their mask."""
    rng = np.random.default_rng(0)
    ids = rng.integers(5, tokenizer.vocab_size, size=(count, length))
    lengths = rng.integers(3, length + 1, size=count)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    ids = np.where(mask == 1, ids, tokenizer.pad_id)
    ids[:, 0] = tokenizer.cls_id
    ids[np.arange(count), lengths - 1] = tokenizer.sep_id
    return ids, mask


def test_fifteen_percent_of_which_eighty_ten_ten(tokenizer: Tokenizer) -> None:
    ids, mask = rows(tokenizer, 4000, 60)
    masked, labels = Masking(tokenizer, MaskedData()).apply(
        ids, mask, np.random.Generator(np.random.Philox(0))
    )
    chosen = labels != IGNORED
    special = (ids == tokenizer.cls_id) | (ids == tokenizer.sep_id) | (mask == 0)
    assert not (chosen & special).any()
    assert np.array_equal(labels[chosen], ids[chosen])
    assert np.array_equal(masked[~chosen], ids[~chosen])
    inner = (~special).sum(axis=1)
    assert np.array_equal(chosen.sum(axis=1), np.maximum(1, np.rint(0.15 * inner)))
    count = chosen.sum()
    became = masked[chosen]
    assert (became == tokenizer.mask_id).sum() / count == pytest.approx(0.8, abs=0.01)
    kept = (became == ids[chosen]).sum() / count  # now and then a random token is the same one
    assert kept == pytest.approx(0.1 + 0.1 / tokenizer.vocab_size, abs=0.01)
    others = became[(became != tokenizer.mask_id) & (became != ids[chosen])]
    assert set(others.tolist()) == set(range(5, tokenizer.vocab_size)) | {tokenizer.unk_id}


def test_whole_words_are_masked_whole(tokenizer: Tokenizer) -> None:
    ids = np.array([[tokenizer.cls_id, *tokenizer.encode(TEXT)[:60], tokenizer.sep_id]] * 500)
    mask = np.ones_like(ids)
    data = MaskedData(whole_words=True)
    _, labels = Masking(tokenizer, data).apply(ids, mask, np.random.Generator(np.random.Philox(0)))
    chosen = labels != IGNORED
    words = np.cumsum(tokenizer.begins_word[ids[0]])
    assert len(set(words[1:-1])) < 55  # some words have several pieces
    for row in chosen:
        for word in set(words[1:-1]):
            assert len(set(row[1:-1][words[1:-1] == word])) == 1
    assert not chosen[:, [0, -1]].any()
    assert chosen.sum(axis=1).max() == 9  # 15 % of 60
    assert chosen[:, 1:-1].mean() > 0.14
    assert chosen[:, 1:-1].mean(axis=0) == pytest.approx(0.15, abs=0.06)  # no word is favoured


def test_a_row_without_short_words_is_masked_by_tokens(tokenizer: Tokenizer) -> None:
    inside = next(i for i in range(5, 90) if not tokenizer.begins_word[i])
    ids = np.array([[tokenizer.cls_id, *[inside] * 40, tokenizer.sep_id]] * 50)
    _, labels = Masking(tokenizer, MaskedData(whole_words=True)).apply(
        ids, np.ones_like(ids), np.random.Generator(np.random.Philox(0))
    )
    assert ((labels != IGNORED).sum(axis=1) == 6).all()


@pytest.mark.parametrize("whole_words", [False, True])
def test_the_end_of_a_document_in_a_row_is_not_masked(
    tokenizer: Tokenizer, whole_words: bool
) -> None:
    inside = next(i for i in range(5, 90) if not tokenizer.begins_word[i])
    end = tokenizer.sep_id
    ids = np.array([[tokenizer.cls_id, *[9, inside, end, inside, 9] * 8, end]] * 200)
    masked, labels = Masking(tokenizer, MaskedData(whole_words=whole_words)).apply(
        ids, np.ones_like(ids), np.random.Generator(np.random.Philox(0))
    )
    assert (masked[ids == end] == end).all() and (labels[ids == end] == IGNORED).all()
    chosen = labels != IGNORED
    if whole_words:  # what follows the end begins a word, whatever the vocabulary says
        assert np.array_equal(chosen[:, 1:41:5], chosen[:, 2:41:5])
        assert not np.array_equal(chosen[:, 4:41:5], chosen[:, 2:41:5])


def recipe(data: Any, batch_size: int = 8) -> Recipe:
    return Recipe(train=TrainConfig(batch_size=batch_size), data=data)


SMALL = BertConfig(max_position_embeddings=32)


@pytest.mark.parametrize("kind", ["packed", "lines"])
@pytest.mark.parametrize("config", [SMALL, RobertaConfig(max_position_embeddings=34)])
def test_rows_for_pretraining(kind: Any, config: BertConfig, tmp_path: Path) -> None:
    lines = [f"{n} quick foxes jump over {n * 7} lazy dogs" for n in range(300)]
    (tmp_path / "t.txt").write_text("\n".join(lines))
    data = MaskedData(
        source=(str(tmp_path / "t.txt"),), rows=kind, vocab_size=400, tokenizer="bpe", length=24
    )
    made = prepare_masked(config, recipe(data))
    tokenizer: Any = made.processor
    assert made.config.vocab_size == tokenizer.vocab_size
    assert made.config.pad_token_id == tokenizer.pad_id == config.pad_token_id
    batch = made.train.batch(0)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert (ids[:, 0] == tokenizer.cls_id).all()
    ends = ids[np.arange(len(ids)), mask.sum(axis=1) - 1]
    assert (ends == tokenizer.sep_id).all()
    assert (ids[mask == 0] == tokenizer.pad_id).all()
    assert ids.shape[1] <= 24
    if kind == "packed":
        assert mask.mean() > 0.9
        assert made.train.batch(0)["input_ids"].shape[1] == 24
    again, other = made.train.batch(0), made.train.batch(len(made.train))
    assert np.array_equal(again["input_ids"], ids)
    assert not np.array_equal(other["labels"], batch["labels"])  # drawn anew in every epoch
    assert made.validation is not None
    first, second = (made.validation.batch(i * len(made.validation)) for i in (0, 1))
    assert np.array_equal(first["labels"], second["labels"])


def reviews(path: Path, names: str = "pn") -> tuple[str, ...]:
    files = []
    for name in names:
        (path / f"r.{name}").write_text("".join(f"{name * 3} text {i}\n" for i in range(40)))
        files.append(str(path / f"r.{name}"))
    return tuple(files)


def test_classes(tmp_path: Path) -> None:
    made = prepare_classes(SMALL, recipe(ClassData(source=reviews(tmp_path), vocab_size=100)))
    assert made.config.id2label == {"0": "n", "1": "p"}
    tokenizer: Any = made.processor
    batch = made.train.batch(3)
    for ids, label in zip(batch["input_ids"], batch["labels"], strict=True):
        text = tokenizer.decode([i for i in ids if i != tokenizer.pad_id])
        assert text.startswith(("nnn", "ppp")[label])
    assert {label for _, label in made.examples} == {"n", "p"}
    more = ClassData(source=reviews(tmp_path, "pnx"))
    fewer = ClassData(source=reviews(tmp_path, "pn"))
    kept = prepare_classes(
        BertConfig(max_position_embeddings=32, id2label={"0": "p", "1": "n", "2": "z"}),
        recipe(fewer),
        processor=tokenizer,
    )
    assert kept.config.labels == ("p", "n", "z")  # a model that knows them goes on as it is
    for evaluate_only in (True, False):
        with pytest.raises(CambrianError, match=r"'x', but the model knows only n, p; .* --base"):
            prepare_classes(made.config, recipe(more), tokenizer, evaluate_only)
    one = tmp_path / "one.csv"
    one.write_text("text,label\na,p\nb,p\n")
    with pytest.raises(UsageError, match="All examples are 'p'"):
        prepare_classes(SMALL, recipe(ClassData(source=(str(one),), vocab_size=100)))


def test_a_class_that_is_held_out_alone_is_known(tmp_path: Path) -> None:
    for name, lines in {"train": "a,p\nb,n\n", "held": "c,x\n"}.items():
        (tmp_path / f"{name}.csv").write_text("text,label\n" + lines)
    source, held = (str(tmp_path / f"{name}.csv") for name in ("train", "held"))
    data = ClassData(source=(source,), validation=(held,), vocab_size=100)
    assert prepare_classes(SMALL, recipe(data)).config.labels == ("n", "p", "x")


def test_tags_are_on_the_first_piece_of_a_word() -> None:
    data = TagData(tokenizer="wordpiece", vocab_size=400, validation_fraction=0.05)
    config = BertConfig(max_position_embeddings=24)
    made = prepare_tags(config, recipe(data, batch_size=64))
    tokenizer: Any = made.processor
    assert made.config.labels == ("keyword", "name", "number", "operator", "string")
    batch = made.train.batch(0)
    ids, labels = batch["input_ids"], batch["labels"]
    assert ids.shape == labels.shape and ids.shape[1] <= 24
    counted = labels != IGNORED
    assert tokenizer.begins_word[ids[counted]].all()
    special = np.isin(ids, [tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id])
    assert not (counted & special).any()
    words, tags = made.examples[0]
    pieces = encode_words(tokenizer, words)
    assert len(pieces) == len(words) == len(tags)
    assert made.validation is not None
    row = made.validation.batch(0)["labels"][0]
    numbers = [made.config.labels.index(tag) for tag in tags]
    assert row[row != IGNORED].tolist() == numbers[: (row != IGNORED).sum()]


def test_pairs_keep_together() -> None:
    made = prepare_pairs(SMALL, recipe(PairData(vocab_size=400)))
    tokenizer: Any = made.processor
    batch = made.train.batch(1)
    year = {"input_ids": slice(-4, None), "pair_input_ids": slice(0, 4)}
    found = [
        [tokenizer.decode([i for i in ids if i != tokenizer.pad_id])[part] for ids in batch[name]]
        for name, part in year.items()
    ]
    assert made.examples
    assert sum(a == b for a, b in zip(*found, strict=True)) >= 6  # not all forms end in the year
    assert batch["pair_attention_mask"].shape == batch["pair_input_ids"].shape


def test_what_cannot_work_is_one_sentence(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match=r"data\.length must be from 3 to .* 32; it is 33"):
        prepare_masked(SMALL, recipe(MaskedData(length=33)))
    with pytest.raises(UsageError, match="start from the tokenizer"):
        prepare_pairs(
            BertConfig(vocab_size=20, max_position_embeddings=32), recipe(PairData()), tokenizer
        )
    with pytest.raises(UsageError, match="no mask token"):
        Masking(Tokenizer.train("char", ["abc"], 10), MaskedData())
    with pytest.raises(UsageError, match="mask_fraction"):
        Masking(tokenizer, MaskedData(mask_fraction=0.0))
    with pytest.raises(UsageError, match="no token to begin"):
        gpt = Tokenizer.train("char", ["abc 0123456789"], 20)
        prepare_pairs(SMALL, recipe(PairData()), gpt)
