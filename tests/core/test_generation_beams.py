"""Beam search on a chain of known probabilities. (Against transformers: tests of the families.)"""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from cambrian.artifact import Signature
from cambrian.generation.beams import Beam, beam_search, log_softmax
from cambrian.generation.config import GenerationConfig
from cambrian.generation.decoding import Decoding, Tokens
from cambrian.runtime import Array, Session, State


class Chain(Session):
    """An engine whose next token depends on the last two, and that remembers what it was told."""

    provider = "chain"
    signatures: Mapping[str, Signature] = {
        "decoder": Signature(inputs=(), outputs=(), state={"present": "past"})
    }

    def __init__(self, logits: Array) -> None:
        self.logits = logits  # (V, V, V)
        self.taken: list[set[str]] = []
        self.widths: list[int] = []

    def run(
        self, graph: str, inputs: Mapping[str, Array], state: State | None = None
    ) -> tuple[dict[str, Array], State]:
        tokens, state = inputs["input_ids"], state or {}
        past = state.get("past", np.zeros((len(tokens), 1), np.int64))
        texts = np.concatenate([past, tokens], axis=1)
        self.widths.append(len(tokens))
        assert (inputs["row"] == state["source"]).all()
        found = self.logits[texts[:, -2], texts[:, -1]][:, None]
        return {"logits": found}, {**state, "past": texts}

    def take(self, state: State, rows: Array) -> State:
        self.taken.append(set(state))
        return {name: value[rows] for name, value in state.items()}

    def close(self) -> None: ...


class ChainDecoding(Decoding):
    """Each row's number goes beside its state, which must stay together."""

    def __init__(self, session: Chain, prompts: Sequence[Sequence[int]], limits: Sequence[int]):
        rows = np.arange(len(prompts))
        super().__init__(session, prompts, limits, session.logits.shape[0], {"source": rows})
        self.rows = rows

    def first(self) -> Mapping[str, Array]:
        return self.following(np.array(self.prompts))

    def following(self, tokens: Tokens) -> Mapping[str, Array]:
        return {"input_ids": tokens, "row": self.rows}

    def select(self, rows: Tokens) -> None:
        self.rows = self.rows[rows]


VOCABULARY = 6


def chain(seed: int, scale: float = 2.0) -> Chain:
    shape = (VOCABULARY,) * 3
    return Chain((np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32))


def every_text(session: Chain, prompt: int, limit: int, end: int, penalty: float) -> list[Beam]:
    """All texts of at most `limit` tokens with their scores, best first."""
    logs = log_softmax(session.logits)
    texts: list[Beam] = []
    for length in range(1, limit + 1):
        for text in itertools.product(range(VOCABULARY), repeat=length):
            if end in text[:-1] or (text[-1] != end and length < limit):
                continue
            told = [0, prompt, *text]
            total = sum(float(logs[told[i], told[i + 1], told[i + 2]]) for i in range(length))
            texts.append(Beam(list(text), total / length**penalty))
    return sorted(texts, key=lambda beam: -beam.score)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("penalty", [0.0, 1.0, -0.5, 2.0])
def test_enough_beams_find_the_best_of_all_texts(seed: int, penalty: float) -> None:
    session = chain(seed)
    options = GenerationConfig(
        num_beams=VOCABULARY**3, length_penalty=penalty, early_stopping="never"
    )
    found = beam_search(ChainDecoding(session, [[1], [4]], [4, 3]), options, {5})
    for beam, prompt, limit in zip(found, (1, 4), (4, 3), strict=True):
        best = every_text(session, prompt, limit, 5, penalty)[0]
        assert beam.tokens == best.tokens
        assert math.isclose(beam.score, best.score, rel_tol=1e-5)


@pytest.mark.parametrize("early", [True, False, "never"])
@pytest.mark.parametrize("penalty", [0.0, 1.0, -1.0])
def test_a_row_does_not_depend_on_those_beside_it(early: Any, penalty: float) -> None:
    prompts, limits = [[n] for n in range(5)], [9, 3, 12, 1, 7]
    options = GenerationConfig(num_beams=3, length_penalty=penalty, early_stopping=early)
    together = beam_search(ChainDecoding(chain(0), prompts, limits), options, {5})
    for prompt, limit, beam in zip(prompts, limits, together, strict=True):
        [alone] = beam_search(ChainDecoding(chain(0), [prompt], [limit]), options, {5})
        assert alone == beam
        assert len(beam.tokens) == limit or beam.tokens[-1] == 5
        assert 5 not in beam.tokens[:-1]


def test_rows_that_have_ended_leave_the_batch_and_sources_are_taken_only_then() -> None:
    session = chain(0)
    options = GenerationConfig(num_beams=3)
    beam_search(ChainDecoding(session, [[1], [2]], [2, 6]), options, frozenset())
    assert session.widths == [2, 6, 3, 3, 3, 3]
    whole = {"past", "source"}
    assert session.taken[:2] == [whole, whole]  # beams from rows, then a row less
    assert all(taken == {"past"} for taken in session.taken[2:])


def test_beams_know_more_than_the_likeliest_token() -> None:
    """A likely first token with unlikely successors loses to its rival."""
    session = chain(0, 0.0)
    session.logits[0, 0] = np.log([0.001, 0.5, 0.4, 0.05, 0.048, 0.001])
    session.logits[0, 2] = np.log([0.001, 0.001, 0.001, 0.99, 0.006, 0.001])
    decoding = ChainDecoding(session, [[0]], [2])
    [beam] = beam_search(decoding, GenerationConfig(num_beams=2, length_penalty=0.0), {5})
    assert beam.tokens == [2, 3] and math.isclose(beam.score, math.log(0.4 * 0.99), rel_tol=1e-4)


def test_repetition_is_penalised_by_each_beams_own_tokens() -> None:
    session = chain(3)
    options = GenerationConfig(num_beams=3, repetition_penalty=50.0)
    [beam] = beam_search(ChainDecoding(session, [[1]], [4]), options, frozenset())
    assert len({*beam.tokens, 1}) == 5


def test_a_vocabulary_smaller_than_the_beams_is_no_trouble() -> None:
    logits = np.random.default_rng(0).standard_normal((2, 2, 2)).astype(np.float32)
    decoding = ChainDecoding(Chain(logits), [[0], [1]], [5, 2])
    found = beam_search(decoding, GenerationConfig(num_beams=7, early_stopping="never"), {1})
    assert all(beam.score > -50 for beam in found)
    assert all(1 not in beam.tokens[:-1] for beam in found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_beams": 0}, "num_beams must be from 1 to 1000"),
        ({"num_beams": 10**6}, "num_beams must be from 1 to 1000"),
        ({"temperature": 1e-40}, "temperature must be from 0.0001 to 10000"),
        ({"temperature": math.nan}, "temperature must be from"),
        ({"repetition_penalty": 1e300}, "repetition_penalty must be from"),
        ({"num_beams": 2, "do_sample": True}, "do_sample=false or num_beams=1"),
        ({"length_penalty": math.inf}, "length_penalty must be a number from -10 to 10"),
        ({"length_penalty": 11}, "length_penalty must be a number from -10 to 10"),
    ],
)
def test_impossible_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**changes)


def test_the_options_need_neither_numpy_nor_torch_and_the_search_no_torch() -> None:
    code = (
        "import sys, cambrian.generation.config;"
        "assert not {'torch', 'numpy'} & sys.modules.keys();"
        "import cambrian.generation.text; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
