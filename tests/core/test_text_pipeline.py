"""Text generation as a family gets it that says nothing of positions or of a longest text."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest

from cambrian.artifact import Signature
from cambrian.data.tokenizer import Tokenizer
from cambrian.errors import CambrianError
from cambrian.runtime import Array, Session, State
from cambrian.text_pipeline import TextGeneration


class Counting(Session):
    """An engine whose next token is how many a row has read by now, and whose state says so."""

    provider = "counting"
    signatures: Mapping[str, Signature] = {
        "decoder": Signature(inputs=(), outputs=(), state={"read": "read"})
    }

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.names: set[str] = set()

    def run(
        self, graph: str, inputs: Mapping[str, Array], state: State | None = None
    ) -> tuple[dict[str, Array], State]:
        self.names |= inputs.keys()
        new = inputs["input_ids"].shape[1]
        given = inputs["attention_mask"][:, -new:].sum(-1)
        read = given + (state or {}).get("read", 0)
        assert np.array_equal(read, inputs["attention_mask"].sum(-1))
        logits = np.eye(self.vocab_size, dtype=np.float32)[read % self.vocab_size]
        return {"logits": logits[:, None]}, {"read": read}

    def take(self, state: State, rows: Array) -> State:
        return {name: value[rows] for name, value in state.items()}

    def close(self) -> None: ...


class Speechless(Counting):
    def run(
        self, graph: str, inputs: Mapping[str, Array], state: State | None = None
    ) -> tuple[dict[str, Array], State]:
        outputs, state = super().run(graph, inputs, state)
        return {"other": outputs["logits"]}, state


def test_an_engine_without_logits_is_named() -> None:
    tokenizer = Tokenizer.train("char", ["abcdefgh"], 16)
    session = Speechless(tokenizer.vocab_size)
    config = SimpleNamespace(vocab_size=tokenizer.vocab_size, eos_token_id=None)
    pipeline = TextGeneration(session, tokenizer, config)
    ids = np.array([[1, 2, 3]])
    for ask in (
        lambda: pipeline(["abc"]),
        lambda: pipeline.likelihood({"input_ids": ids, "labels": ids}),
    ):
        with pytest.raises(CambrianError, match="'decoder' gives no logits, only other; export"):
            ask()


def test_rows_of_unequal_length_grow_without_end() -> None:
    tokenizer = Tokenizer.train("char", ["abcdefgh"], 16)
    session = Counting(tokenizer.vocab_size)
    config = SimpleNamespace(vocab_size=tokenizer.vocab_size, eos_token_id=None)
    pipeline = TextGeneration(session, tokenizer, config)
    results = pipeline(["abc", "a" * 300], max_new_tokens=400)
    for result, start in zip(results, (3, 300), strict=True):
        assert result["tokens"] == [n % tokenizer.vocab_size for n in range(start, start + 400)]
    assert session.names == {"input_ids", "attention_mask"}
    beams = pipeline(["abc", "a"], max_new_tokens=3, num_beams=2)
    assert [beam["tokens"] for beam in beams] == [[3, 4, 5], [1, 2, 3]]
    assert pipeline.default_sizes(config).new == 128
