"""One step of decoding on any engine: tokens in, scores of the next ones out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cambrian.errors import CambrianError, listed
from cambrian.runtime import Array, Session, State

Tokens = NDArray[np.int64]
Scores = NDArray[np.floating[Any]]  # (rows, vocabulary): logits, -inf for what is ruled out


class Decoding(ABC):
    """Rows of tokens that grow together, over a graph of a session that returns "logits".

    prompts: what each row starts with, as far as the decoder reads it (and as penalties for
        repetition see it).
    limits: how many tokens each row may grow by.
    """

    graph = "decoder"

    def __init__(
        self,
        session: Session,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        vocab_size: int,
        state: State | None = None,
    ) -> None:
        self.prompts, self.limits, self.vocab_size = prompts, limits, vocab_size
        self._session, self._state = session, state
        self._sources = np.arange(len(prompts))

    @abstractmethod
    def first(self) -> Mapping[str, Array]:
        """The inputs of the first call."""

    @abstractmethod
    def following(self, tokens: Tokens) -> Mapping[str, Array]:
        """The inputs of the next call, which adds one token to each row: (rows, 1)."""

    @abstractmethod
    def select(self, rows: Tokens) -> None:
        """Keep these rows, some perhaps several times, of all arrays that grow or are a row's."""

    def start(self) -> Scores:
        """The scores of what follows the prompts."""
        return self._run(self.first())

    def step(self, tokens: Tokens) -> Scores:
        """The scores of what follows `tokens`, one a row: (rows,)."""
        return self._run(self.following(tokens[:, None]))

    def take(self, rows: Tokens) -> None:
        """Go on with the given rows, in that order; a row may be taken several times."""
        if np.array_equal(rows, np.arange(len(self._sources))):
            return
        sources = self._sources[rows]
        part = self._state or {}
        if np.array_equal(sources, self._sources):  # what no step renews is the same for all
            renewed = set(self._session.signatures[self.graph].state.values())
            part = {name: value for name, value in part.items() if name in renewed}
        self._state = {**(self._state or {}), **self._session.take(part, rows)}
        self._sources = sources
        self.select(rows)

    def _run(self, inputs: Mapping[str, Array]) -> Scores:
        outputs, self._state = self._session.run(self.graph, inputs, self._state)
        if "logits" not in outputs:
            raise CambrianError(
                f"The model's graph '{self.graph}' gives no logits, only {listed([*outputs])}; "
                "export the model again."
            )
        scores = outputs["logits"][:, -1].astype(np.float32)
        if np.isnan(scores.max()):  # the largest is, where one is
            raise CambrianError(
                f"The model gives scores that are no numbers on {self._session.provider}; its "
                "weights are broken, or too large for their precision."
            )
        return scores

    def seen(self) -> NDArray[np.bool_]:
        """Which tokens each prompt holds: (rows, vocabulary)."""
        seen = np.zeros((len(self.prompts), self.vocab_size), np.bool_)
        for row, prompt in enumerate(self.prompts):
            seen[row, list(prompt)] = True
        return seen


class LeftPadded(Decoding):
    """A decoder that takes "input_ids" and the "attention_mask" of all tokens so far, and keeps
    what else it needs as state. Prompts of unequal length are padded on the left."""

    def __init__(
        self,
        session: Session,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        vocab_size: int,
    ) -> None:
        super().__init__(session, prompts, limits, vocab_size)
        width = max(map(len, prompts))
        self.tokens, self.mask = np.zeros((2, len(prompts), width), np.int64)
        for row, prompt in enumerate(prompts):
            self.tokens[row, width - len(prompt) :] = prompt
            self.mask[row, width - len(prompt) :] = 1

    def first(self) -> Mapping[str, Array]:
        return self.inputs(self.tokens)

    def following(self, tokens: Tokens) -> Mapping[str, Array]:
        self.mask = np.concatenate((self.mask, np.ones_like(self.mask[:, :1])), axis=1)
        return self.inputs(tokens)

    def select(self, rows: Tokens) -> None:
        self.mask = self.mask[rows]

    def inputs(self, tokens: Tokens) -> Mapping[str, Array]:
        """Those of a call that adds `tokens` (rows, new); `mask` (rows, all) holds them already."""
        return {"input_ids": tokens, "attention_mask": self.mask}
