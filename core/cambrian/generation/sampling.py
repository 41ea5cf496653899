"""The next token: the likeliest, or one drawn from what temperature, top-k and top-p leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cambrian.generation.config import GenerationConfig
from cambrian.generation.decoding import Decoding, Scores, Tokens
from cambrian.workload import GenerationSizes, Workload


def penalise(scores: Scores, seen: NDArray[np.bool_], penalty: float) -> Scores:
    """Make `seen` tokens (batch, vocabulary) less likely: logits divided by the penalty, negative
    ones multiplied (Keskar et al. 2019, section 4.1, in transformers' form)."""
    return np.where(seen, np.where(scores < 0, scores * penalty, scores / penalty), scores)


def keep_top_k(scores: Scores, k: int) -> Scores:
    """Rule out all but the k best tokens of each row; those as good as the k-th stay."""
    if k >= scores.shape[-1]:
        return scores
    worst = np.partition(scores, -k, axis=-1)[:, -k, None]
    return np.where(scores < worst, -np.inf, scores)


def keep_top_p(scores: Scores, p: float) -> Scores:
    """Rule out all but the fewest best tokens that together have probability p (Holtzman 2020)."""
    ascending = np.sort(scores, axis=-1)
    tail = probabilities(ascending).cumsum(axis=-1)
    dropped = (tail[:, :-1] <= 1 - p).sum(axis=-1, keepdims=True)  # the best one always stays
    return np.where(scores < np.take_along_axis(ascending, dropped, axis=-1), -np.inf, scores)


def probabilities(scores: Scores) -> NDArray[np.float64]:
    """Softmax of each row, in float64."""
    weights = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def surprise(scores: Scores, labels: Tokens) -> float:
    """The negative log-likelihood, in nats, of the labels (rows,) under the logits of their rows
    (rows, vocabulary), summed over the rows; in float64."""
    shifted = scores.astype(np.float64) - scores.max(axis=-1, keepdims=True)
    right = np.take_along_axis(shifted, labels[:, None], axis=-1)[:, 0]
    return float((np.log(np.exp(shifted).sum(axis=-1)) - right).sum())


def choose(
    scores: Scores, options: GenerationConfig, generators: Sequence[np.random.Generator]
) -> Tokens:
    """The next token of each row: the best or, with `do_sample`, one drawn by its generator."""
    if not options.do_sample:
        return scores.argmax(axis=-1)
    tokens: NDArray[Any] = np.arange(scores.shape[-1])
    scores = scores / options.temperature
    if options.top_k:
        scores = keep_top_k(scores, options.top_k)
        tokens = np.flatnonzero(np.isfinite(scores).any(axis=0))  # the rest is for the few left
        scores = scores[:, tokens]
    if options.top_p < 1:
        scores = keep_top_p(scores, options.top_p)
    cumulative = probabilities(scores).cumsum(axis=-1)
    drawn = np.array([generator.random() for generator in generators])
    # Scaled by the last sum, which rounding keeps from being exactly 1.
    return tokens[(cumulative <= drawn[:, None] * cumulative[:, -1:]).sum(axis=-1)]


def continuations(decoding: Decoding, options: GenerationConfig) -> Iterator[Tokens]:
    """Yield the next token of every row (rows,), endlessly."""
    seen = decoding.seen()
    rows = np.arange(len(seen))
    # A generator a row: what one draws does not depend on how many there are.
    generators = [
        np.random.Generator(np.random.Philox(key=[options.seed, int(row)])) for row in rows
    ]
    scores = decoding.start()
    while True:
        if options.repetition_penalty != 1:
            scores = penalise(scores, seen, options.repetition_penalty)
        chosen = choose(scores, options, generators)
        yield chosen
        seen[rows, chosen] = True
        scores = decoding.step(chosen)


def greedy(begin: Callable[[], Decoding], sizes: GenerationSizes) -> Workload:
    """Work for a benchmark: the likeliest tokens, `sizes.new` of them, whether or not one of them
    would end the text, for every engine has to do as much."""

    def run() -> Iterator[Tokens]:
        return islice(continuations(begin(), GenerationConfig()), sizes.new)

    return Workload(unit="tokens", count=sizes.batch, run=run)
