"""Text generation by a decoder that counts positions, of which it has so many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cambrian import text_pipeline
from cambrian.generation.decoding import LeftPadded, Tokens
from cambrian.runtime import Array, Session
from cambrian_gpt.config import GPTConfig


class GPTDecoding(LeftPadded):
    """Positions count what is no padding."""

    def __init__(
        self,
        session: Session,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        config: GPTConfig,
    ) -> None:
        super().__init__(session, prompts, limits, config.vocab_size)
        self._last = config.n_positions - 1

    def inputs(self, tokens: Tokens) -> Mapping[str, Array]:
        # Rows that have finished are carried along; they must not run out of positions.
        positions = (self.mask.cumsum(axis=-1) - 1).clip(0, self._last)
        return {**super().inputs(tokens), "position_ids": positions[:, -tokens.shape[1] :]}


class TextGeneration(text_pipeline.TextGeneration):
    """Continues texts within the model's context."""

    config: GPTConfig

    @classmethod
    def room(cls, config: GPTConfig) -> int:
        return config.n_positions

    def decoding(self, prompts: Sequence[Sequence[int]], limits: Sequence[int]) -> GPTDecoding:
        return GPTDecoding(self.session, prompts, limits, self.config)
