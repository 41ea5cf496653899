"""Beam search: of each row's continuations, the one with the best score.

A score is the sum of log-probabilities over length**length_penalty (Wu et al. 2016, section 7, in
the form that transformers gave it). Rows are searched side by side and do not affect each other; a
row whose search has ended leaves the batch.

Shapes: R rows still searched, n beams, K candidates, L the tokens so far.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cambrian.generation.config import GenerationConfig
from cambrian.generation.decoding import Decoding, Scores, Tokens
from cambrian.generation.sampling import penalise

NONE = np.float32(-1e9)  # the score of what is not there; finite, so that it can be added to

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Beam:
    """A text that was found, and its score."""

    tokens: list[int]
    score: float


@dataclass(frozen=True)
class Candidates:
    """The best K ways to go on of each row, best first: (R, K) each.

    `beam` is the beam that a candidate continues, `ended` whether it cannot be continued.
    """

    scores: Floats
    beam: Tokens
    token: Tokens
    ended: NDArray[np.bool_]

    def best(self, count: int, scores: Floats) -> Candidates:
        """The `count` best by other scores than their own."""
        order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        return Candidates(
            np.take_along_axis(scores, order, axis=1),
            np.take_along_axis(self.beam, order, axis=1),
            np.take_along_axis(self.token, order, axis=1),
            np.take_along_axis(self.ended, order, axis=1),
        )


class Finished:
    """The n best texts of each row that have ended."""

    def __init__(self, rows: int, beams: int) -> None:
        self.scores = np.full((rows, beams), NONE)
        self.tokens = np.zeros((rows, beams, 0), np.int64)
        self.lengths = np.zeros((rows, beams), np.int64)  # 0 where there is none

    def take(
        self, rows: Tokens, found: Candidates, tokens: Tokens, length: int, penalty: float
    ) -> None:
        """Take in, for `rows`, those of their first n candidates that have ended.

        The others are there so that n can go on; they may not end (transformers' rule).
        """
        beams = self.scores.shape[1]
        found = found.best(beams, found.scores)
        real = found.ended & (found.scores > NONE / 2)
        scores = np.where(real, found.scores / np.float32(length**penalty), NONE)
        merged = np.concatenate((self.scores[rows], scores), axis=1)
        order = np.argsort(-merged, axis=1, kind="stable")[:, :beams]
        self.scores[rows] = np.take_along_axis(merged, order, axis=1)
        merged = np.concatenate((self.lengths[rows], np.where(real, length, 0)), axis=1)
        self.lengths[rows] = np.take_along_axis(merged, order, axis=1)
        if length > self.tokens.shape[2]:
            more = max(16, self.tokens.shape[2])  # twice as many each time
            self.tokens = np.pad(self.tokens, ((0, 0), (0, 0), (0, more)))
        room = self.tokens.shape[2] - length
        new = np.pad(grown(tokens, found), ((0, 0), (0, 0), (0, room)))
        merged = np.concatenate((self.tokens[rows], new), axis=1)
        self.tokens[rows] = np.take_along_axis(merged, order[..., None], axis=1)

    def best(self) -> list[Beam]:
        """Each row's best text."""
        return [
            Beam(tokens[0, : length[0]].tolist(), float(score[0]))
            for tokens, length, score in zip(self.tokens, self.lengths, self.scores, strict=True)
        ]


def log_softmax(scores: Scores) -> Floats:
    """Logits to log-probabilities, in float32."""
    shifted = scores.astype(np.float32) - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def candidates(scores: Floats, count: int, ends: Set[int]) -> Candidates:
    """The `count` best continuations over all beams of each row: scores (R, n, V)."""
    rows, _, vocabulary = scores.shape
    flat = scores.reshape(rows, -1)
    count = min(count, flat.shape[1])
    chosen = np.argpartition(flat, -count, axis=1)[:, -count:]
    chosen.sort(axis=1)  # so that equal scores have one order
    token = chosen % vocabulary
    found = Candidates(
        np.take_along_axis(flat, chosen, axis=1),
        chosen // vocabulary,
        token,
        np.isin(token, sorted(ends)),
    )
    return found.best(count, found.scores)


def beam_search(decoding: Decoding, options: GenerationConfig, ends: Set[int]) -> list[Beam]:
    """The best text of each row; `ends` are the tokens that end one, which it keeps."""
    beams, limits = options.num_beams, np.asarray(decoding.limits)
    kept = max(2, 1 + len(ends)) * beams  # so many that n of them go on, even if n end
    rows = np.arange(len(limits))  # still searched
    finished = Finished(len(rows), beams)
    running = np.full((len(rows), beams), NONE)
    running[:, 0] = 0  # all beams are the same at first: one counts
    tokens = np.zeros((len(rows), beams, 0), np.int64)
    seen, logits, width = decoding.seen(), decoding.start(), 1
    for length in range(1, int(limits.max()) + 1):
        scores = log_softmax(logits)
        if options.repetition_penalty != 1:
            scores = penalise(scores, seen, options.repetition_penalty).astype(np.float32)
        scores = scores.reshape(len(rows), width, -1) + running[:, :, None]
        found = candidates(scores, kept, ends)
        found.ended[limits[rows] == length] = True
        finished.take(rows, found, tokens, length, options.length_penalty)
        found = found.best(beams, np.where(found.ended, NONE, found.scores))
        going = _going(found.scores, finished.scores[rows], length, limits[rows], options)
        if not going.any():
            break
        tokens, running = grown(tokens, found)[going], found.scores[going]
        parents = np.repeat(np.arange(len(rows)), beams) if width == 1 else _flat(found.beam)
        parents = parents.reshape(len(rows), beams)[going].reshape(-1)
        rows, last = rows[going], found.token[going].reshape(-1)
        decoding.take(parents)
        if options.repetition_penalty != 1:
            seen = seen[parents]
            seen[np.arange(len(parents)), last] = True
        logits, width = decoding.step(last), beams
    return finished.best()


def grown(tokens: Tokens, found: Candidates) -> Tokens:
    """The texts (R, n, L) of the candidates' beams, with their tokens behind: (R, n, L + 1)."""
    texts = np.take_along_axis(tokens, found.beam[..., None], axis=1)
    return np.concatenate((texts, found.token[..., None]), axis=2)


def _flat(beam: Tokens) -> Tokens:
    """Beams of rows (R, n) as rows of the batch."""
    return (beam + np.arange(len(beam))[:, None] * beam.shape[1]).reshape(-1)


def _going(
    running: Floats, finished: Floats, length: int, limits: Tokens, options: GenerationConfig
) -> NDArray[np.bool_]:
    """Which rows go on: n texts have not ended yet, or a running one may still beat the worst."""
    early, penalty = options.early_stopping, options.length_penalty
    reach = limits if early == "never" and penalty > 0 else np.full_like(limits, length)
    possible = running[:, 0] / (reach**penalty).astype(np.float32)
    worst = finished.min(axis=1)
    full = worst > NONE
    better = ~full if early is True else ~full | (possible > worst)
    return better & (length < limits)
