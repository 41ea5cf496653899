"""Tokens to text: when a text ends, what of it can be shown already, and how one is generated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from cambrian.generation.beams import beam_search
from cambrian.generation.config import GenerationConfig
from cambrian.generation.decoding import Decoding
from cambrian.generation.sampling import continuations

Decode = Callable[[Sequence[int]], str]  # a tokenizer's

INCOMPLETE = "\ufffd"  # what the bytes of an unfinished character decode to


class Continuation:
    """What follows one prompt, token by token, until `finish` says why it ended.

    finish: "stop" for a token of `ends` or a stop string, "length" for the limit, "" before.
    score: what a beam search gave it.
    """

    def __init__(
        self, decode: Decode, options: GenerationConfig, ends: frozenset[int], limit: int
    ) -> None:
        self.tokens: list[int] = []
        self.finish = ""
        self.score: float | None = None
        self._decode = decode
        self._stop = options.stop
        self._ends = ends
        self._limit = limit

    def append(self, token: int) -> None:
        self.tokens.append(token)
        if token in self._ends or (self._stop and self._cut(self._decoded()) is not None):
            self.finish = "stop"
        elif len(self.tokens) >= self._limit:
            self.finish = "length"

    @property
    def text(self) -> str:
        """The text so far, up to the first stop string."""
        decoded = self._decoded()
        return decoded[: self._cut(decoded)]

    @property
    def settled(self) -> str:
        """The part of `text` that no later token changes: no unfinished character, nor what may
        become a stop string."""
        if self.finish:
            return self.text
        text = self.text.removesuffix(INCOMPLETE)
        lengths = (n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n]))
        return text[: len(text) - max(lengths, default=0)]

    def result(self) -> dict[str, Any]:
        """ "text", "tokens", "finish" and, from a beam search, "score"."""
        score = {} if self.score is None else {"score": self.score}
        return {"text": self.text, "tokens": self.tokens, "finish": self.finish, **score}

    def extend(self, tokens: Iterable[int]) -> Iterator[str]:
        """Append tokens until the text ends, and yield it in pieces of whole characters."""
        sent = 0
        for token in tokens:
            self.append(token)
            if piece := self.settled[sent:]:
                sent += len(piece)
                yield piece
            if self.finish:
                return

    def _decoded(self) -> str:
        return self._decode(self.tokens)

    def _cut(self, decoded: str) -> int | None:
        found = (at for stop in self._stop if (at := decoded.find(stop)) >= 0)
        return min(found, default=None)


def generate(
    decoding: Decoding, decode: Decode, options: GenerationConfig, ends: frozenset[int]
) -> list[Continuation]:
    """What follows each prompt, to its end."""
    rows = [Continuation(decode, options, ends, limit) for limit in decoding.limits]
    if options.num_beams > 1:
        for row, beam in zip(rows, beam_search(decoding, options, ends), strict=True):
            row.score = beam.score
            for token in beam.tokens:
                if not row.finish:
                    row.append(token)
        return rows
    for chosen in continuations(decoding, options):
        for row, token in zip(rows, chosen.tolist(), strict=True):
            if not row.finish:
                row.append(token)
        if all(row.finish for row in rows):
            break
    return rows


def stream(
    decoding: Decoding, decode: Decode, options: GenerationConfig, ends: frozenset[int]
) -> Iterator[str]:
    """What follows the one prompt, in pieces as they come; a beam search gives it at its end."""
    [limit] = decoding.limits
    if options.num_beams > 1:
        tokens: Iterable[int] = beam_search(decoding, options, ends)[0].tokens
    else:
        tokens = (int(chosen[0]) for chosen in continuations(decoding, options))
    yield from Continuation(decode, options, ends, limit).extend(tokens)


def limits(prompts: Sequence[Sequence[int]], options: GenerationConfig, room: int) -> list[int]:
    """How many tokens may follow each prompt in a context of `room` tokens: the last one that is
    generated is never read."""
    return [min(options.max_new_tokens, room + 1 - len(prompt)) for prompt in prompts]
