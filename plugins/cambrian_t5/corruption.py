"""Span corruption: the pretraining of T5 (Raffel et al. 2020, section 3.1.4).

Spans of a text are each replaced by a sentinel; the target is each sentinel with what it stands
for: "Thank you <0> me to your party <1> week" and "<0> for inviting <1> last".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


def counts(length: int, density: float, span: float) -> tuple[int, int]:
    """(tokens that are left out, spans they are in) of a text; at least one of each, and never so
    many that nothing stands between two spans."""
    noise = min(max(round(length * density), 1), length - 1)
    spans = max(round(noise / span), 1)
    return noise, min(spans, noise, length - noise)


def raw_length(length: int, density: float, span: float) -> int:
    """The longest text whose corrupted form, with its end, has at most `length` tokens."""
    raw = length - 1
    while True:
        noise, spans = counts(raw + 1, density, span)
        if raw + 1 - noise + spans + 1 > length:
            return raw
        raw += 1


def corrupt(
    tokens: Ids, sentinels: Ids, generator: np.random.Generator, *, density: float, span: float
) -> tuple[Ids, Ids]:
    """Return (what is left, what was taken), both 1-d, without an end.

    The lengths of spans and of what lies between them are drawn evenly from all ways to divide
    the two amounts; a text begins with what is left.
    """
    if len(tokens) < 2:
        return tokens, tokens[:0]
    noise, spans = counts(len(tokens), density, span)
    spans = min(spans, len(sentinels))
    kept, taken = _divide(len(tokens) - noise, spans, generator), _divide(noise, spans, generator)
    ends = np.cumsum(np.stack([kept, taken], axis=1).reshape(-1))
    pieces: list[Ids] = np.split(tokens, ends[:-1])
    left: list[Any] = []
    target: list[Any] = []
    for number in range(spans):
        mark = sentinels[number : number + 1]
        left += [pieces[2 * number], mark]
        target += [mark, pieces[2 * number + 1]]
    return np.concatenate(left), np.concatenate(target)


def _divide(amount: int, parts: int, generator: np.random.Generator) -> Ids:
    """`amount` as a sum of `parts` positive numbers, every such sum as likely as another."""
    cuts = np.sort(generator.choice(amount - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [amount]])).astype(np.int64)
