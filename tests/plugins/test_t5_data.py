"""Span corruption and pairs as T5 is trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cambrian.config import Recipe, TrainConfig
from cambrian.data import IGNORED
from cambrian.data.tokenizer import Tokenizer
from cambrian.errors import UsageError
from cambrian_t5.config import T5Config, T5Data
from cambrian_t5.corruption import corrupt, counts, raw_length
from cambrian_t5.data import prepare

SENTINELS = np.arange(900, 800, -1)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def restored(left: Any, target: Any) -> list[int]:
    """Put every span back where its sentinel stands."""
    spans: dict[int, list[int]] = {}
    for token in target.tolist():
        if token > 800:
            spans[token] = []
            last = token
        else:
            spans[last].append(token)
    return [t for token in left.tolist() for t in (spans[token] if token > 800 else [token])]


@pytest.mark.parametrize("length", [2, 3, 7, 20, 100, 512])
def test_corruption_loses_nothing(length: int) -> None:
    tokens = np.random.default_rng(0).integers(1, 800, size=length)
    for seed in range(30):
        left, target = corrupt(tokens, SENTINELS, generator(seed), density=0.15, span=3.0)
        assert restored(left, target) == tokens.tolist()
        noise, spans = counts(length, 0.15, 3.0)
        marks = [t for t in left.tolist() if t > 800]
        assert marks == SENTINELS[:spans].tolist()
        assert marks == [t for t in target.tolist() if t > 800]
        assert len(target) == noise + spans
        assert left[0] <= 800  # a text begins with what is left
        places = np.flatnonzero(left > 800)
        assert (np.diff(places) > 1).all()  # something stands between two spans


def test_the_papers_rates() -> None:
    assert counts(512, 0.15, 3.0) == (77, 26)
    tokens, lengths = np.arange(1, 513), []
    for seed in range(200):
        _, target = corrupt(tokens, SENTINELS, generator(seed), density=0.15, span=3.0)
        lengths += np.diff(np.flatnonzero(np.append(target, 900) > 800)).tolist()
    assert np.mean(lengths) - 1 == pytest.approx(77 / 26)
    assert len(set(lengths)) > 8  # spans differ in length


@pytest.mark.parametrize("length", [8, 16, 64, 512])
def test_raw_text_fills_the_row(length: int) -> None:
    raw = raw_length(length, 0.15, 3.0)
    left, _ = corrupt(np.arange(1, raw + 1), SENTINELS, generator(), density=0.15, span=3.0)
    assert length - 1 <= len(left) + 1 <= length
    more, _ = corrupt(np.arange(1, raw + 2), SENTINELS, generator(), density=0.15, span=3.0)
    assert len(more) + 1 > length


def test_published_lengths() -> None:
    """The reference's own table: inputs of 512 come of 568 tokens and give targets of 114."""
    raw = raw_length(512, 0.15, 3.0)
    noise, spans = counts(raw, 0.15, 3.0)
    assert (raw, noise + spans + 1) == (568, 114)


def recipe(data: T5Data, batch_size: int = 8) -> Recipe:
    return Recipe(train=TrainConfig(batch_size=batch_size), data=data)


def test_pairs_behind_a_prefix(tmp_path: Path) -> None:
    pairs = "".join(f"{n} dogs\t{n} Hunde und mehr\n" for n in range(60))
    (tmp_path / "p.tsv").write_text(pairs)
    data = T5Data(source=(str(tmp_path / "p.tsv"),), prefix="translate: ", vocab_size=400)
    made = prepare(T5Config(n_positions=20), recipe(data))
    tokenizer: Any = made.processor
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2)
    assert made.config.vocab_size == tokenizer.vocab_size
    assert made.config.task_prefix == "translate: "
    assert tokenizer.id("<extra_id_0>") == tokenizer.vocab_size - 1
    batch = made.train.batch(0)
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        source = tokenizer.decode(ids.tolist())
        target = [i for i in labels.tolist() if i != IGNORED]
        assert target[-1] == tokenizer.eos_id
        assert source.startswith("translate: ")
        number = source.removeprefix("translate: ").split()[0]
        assert tokenizer.decode(target) == f"{number} Hunde und mehr"
    assert (batch["attention_mask"] == (batch["input_ids"] != 0)).all()
    assert made.examples and made.examples[0][0].endswith(" dogs")  # as a person gives it
    again = prepare(made.config, recipe(T5Data(source=data.source)), processor=tokenizer)
    assert again.config.task_prefix == "translate: "  # the checkpoint's own, unless another is set


def test_spans_of_raw_text() -> None:
    data = T5Data(
        source=("python-reference",), objective="spans", vocab_size=600, length=32, tokenizer="bpe"
    )
    made = prepare(T5Config(), recipe(data))
    tokenizer: Any = made.processor
    for batch in (made.train.batch(0), made.train.batch(7)):
        assert 31 <= batch["input_ids"].shape[1] <= 32
        first = tokenizer.id("<extra_id_0>")
        assert (batch["labels"][:, 0] == first).all()
        assert ((batch["input_ids"] == first).sum(axis=1) == 1).all()
    one, other = made.train.batch(0), made.train.batch(0)
    assert np.array_equal(one["labels"], other["labels"])


def test_what_cannot_work_is_one_sentence() -> None:
    for change, message in [
        ({"length": 3}, "at least 4"),
        ({"noise_density": 0.0}, "noise_density must lie"),
        ({"mean_noise_span_length": 0.5}, "at least 1"),
    ]:
        with pytest.raises(UsageError, match=message):
            prepare(T5Config(), recipe(T5Data(**change)))
    with pytest.raises(UsageError, match="start from the tokenizer"):
        gpt = Tokenizer.train("char", ["abc"], 10)
        prepare(T5Config(vocab_size=4), recipe(T5Data()), processor=gpt)
    with pytest.raises(UsageError, match="lacks <extra_id_0>"):
        gpt = Tokenizer.train("bpe", ["abc"], 300)
        spans = T5Data(source=("python-reference",), objective="spans")
        prepare(T5Config(), recipe(spans), processor=gpt)
