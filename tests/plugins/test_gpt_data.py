"""GPT's data, and the whole way from text to text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cambrian.config import Recipe, TrainConfig
from cambrian.data.config import TextData
from cambrian.data.tokenizer import Tokenizer
from cambrian.errors import UsageError
from cambrian_gpt import register_models
from cambrian_gpt.config import GPTConfig
from cambrian_gpt.data import prepare

[SPEC] = register_models()
SMALL = GPTConfig(n_positions=16, n_embd=16, n_layer=1, n_head=2)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("a", "e"):
        lines = (f"{name} {i * i}: the square of {i}" for i in range(300))
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    data = TextData(
        source=(str(tmp_path / "a.txt"),),
        validation=(str(tmp_path / "e.txt"),),
        tokenizer="char",
    )
    return Recipe(train=TrainConfig(batch_size=3, seed=7), data=data)


def test_the_config_takes_the_tokenizers_vocabulary(recipe: Recipe) -> None:
    prepared = prepare(SMALL, recipe)
    tokenizer = prepared.processor
    assert isinstance(tokenizer, Tokenizer)
    assert prepared.config == replace(
        SMALL,
        vocab_size=tokenizer.vocab_size,
        bos_token_id=tokenizer.eos_id,
        eos_token_id=tokenizer.eos_id,
    )
    assert (prepared.unit, prepared.units_per_row) == ("tokens", 16)


def test_batches_are_windows_of_the_context(recipe: Recipe) -> None:
    prepared = prepare(SMALL, recipe)
    for batches in (prepared.train, prepared.validation):
        assert batches is not None
        batch = batches.batch(0)
        for name in ("input_ids", "labels"):
            assert batch[name].shape == (3, 16) and batch[name].dtype == np.int64
        np.testing.assert_array_equal(batch["input_ids"][:, 1:], batch["labels"][:, :-1])
    assert prepared.validation is not None
    held_out = prepared.processor.decode(prepared.validation.batch(0)["input_ids"][0].tolist())
    assert held_out == "e 0: the square "
    other = prepare(SMALL, replace(recipe, train=replace(recipe.train, seed=8)))
    assert not np.array_equal(prepared.train.batch(0)["labels"], other.train.batch(0)["labels"])


def test_going_on_keeps_the_models_vocabulary(recipe: Recipe) -> None:
    tokenizer = Tokenizer.train("char", ["the square of 0123456789:ab\n"], 64)
    config = replace(SMALL, vocab_size=100, bos_token_id=3, eos_token_id=4)
    prepared = prepare(config, recipe, processor=tokenizer)
    assert prepared.config == config and prepared.processor is tokenizer
    with pytest.raises(UsageError, match="the model only 5;"):
        prepare(replace(SMALL, vocab_size=5), recipe, processor=tokenizer)


def test_windows_may_be_shorter_than_the_context(recipe: Recipe) -> None:
    prepared = prepare(SMALL, replace(recipe, data=replace(recipe.data, length=5)))
    assert prepared.train.batch(0)["labels"].shape == (3, 5)
    assert prepared.config.n_positions == 16 and prepared.units_per_row == 5
    for length in (17, -1):
        with pytest.raises(UsageError, match=r"n_positions, 16; it is"):
            prepare(SMALL, replace(recipe, data=replace(recipe.data, length=length)))


def test_no_validation_is_none(recipe: Recipe) -> None:
    data = replace(recipe.data, validation=(), validation_fraction=0.0)
    assert prepare(SMALL, replace(recipe, data=data)).validation is None


def test_the_spec_names_things_that_exist() -> None:
    assert (SPEC.name, SPEC.task, SPEC.model_type) == ("gpt", "text-generation", "gpt2")
    for ref in (SPEC.model, SPEC.processor, SPEC.data, SPEC.pipeline, SPEC.weights):
        assert ref is not None and ref.load() is not None
    assert isinstance(SPEC.recipe.data, TextData) and SPEC.recipe.optimizer.name == "muon"
