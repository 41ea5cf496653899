"""Which tokens are to be predicted, and what stands in their place (Devlin et al. 2019, 3.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cambrian.data import IGNORED
from cambrian.data.config import MaskedData
from cambrian.data.tokenizer import Tokenizer
from cambrian.errors import UsageError

Table = NDArray[np.int64]


class Masking:
    """Draws masks by the settings of `data`."""

    def __init__(self, tokenizer: Tokenizer, data: MaskedData) -> None:
        """UsageError for fractions that make no sense, or a vocabulary without a mask token."""
        if tokenizer.mask_id is None:
            raise UsageError(
                "The tokenizer has no mask token ([MASK] or <mask>); name it as mask_token in its "
                "tokenizer_config.json, or choose another tokenizer."
            )
        shares = data.mask_token_fraction, data.random_token_fraction
        if not 0 < data.mask_fraction < 1 or min(shares) < 0 or sum(shares) > 1:
            raise UsageError(
                "data.mask_fraction must lie between 0 and 1, and data.mask_token_fraction and "
                "data.random_token_fraction may add up to 1 at most."
            )
        self.mask_id = tokenizer.mask_id
        self.fraction, self.shares = data.mask_fraction, shares
        roles = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
        self.special: Table = np.array([i for i in roles if i is not None], np.int64)
        self.ordinary: Table = np.setdiff1d(np.arange(tokenizer.vocab_size), self.special)
        self.begins = tokenizer.begins_word if data.whole_words else None

    def apply(
        self, ids: Table, attention_mask: Table, generator: np.random.Generator
    ) -> tuple[Table, Table]:
        """Masked ids and labels, both (B, S). In every row the given share of its tokens, rounded
        and at least one, is to be predicted (of whole words, at most so many); special tokens and
        a row's first and last never are."""
        inner = attention_mask.astype(np.bool_) & ~np.isin(ids, self.special)
        inner[:, 0] = False
        inner[np.arange(len(ids)), attention_mask.sum(axis=1) - 1] = False
        order = np.where(inner, generator.random(ids.shape), 2.0)
        wanted = np.maximum(1, np.rint(self.fraction * inner.sum(axis=1))).astype(np.int64)
        limit = np.take_along_axis(np.sort(order, axis=1), wanted[:, None] - 1, axis=1)
        chosen = (order <= limit) & inner
        if self.begins is not None:
            first = inner & np.roll(~inner, 1, axis=1)  # of a word, whatever the vocabulary says
            words = np.cumsum((self.begins[ids] | first | ~inner), axis=1)
            for row, count in enumerate(wanted):
                whole = _whole_words(words[row], order[row], inner[row], int(count))
                chosen[row] = whole if whole.any() else chosen[row]
        labels = np.where(chosen, ids, IGNORED)
        drawn = generator.random(ids.shape)
        others = generator.choice(self.ordinary, ids.shape)
        masked, random = self.shares
        swapped = np.where(drawn < masked, self.mask_id, others)
        return np.where(chosen & (drawn < masked + random), swapped, ids), labels


def _whole_words(words: Any, order: Any, inner: Any, count: int) -> Any:
    """Which tokens of a row to predict: the words with the lowest first random number, each that
    still fits into `count` tokens. `words` (S,) numbers each token's word."""
    _, first, sizes = np.unique(words[inner], return_index=True, return_counts=True)
    chosen = np.zeros(int(words.max()) + 1, np.bool_)
    for place in np.argsort(order[inner][first], kind="stable"):
        if sizes[place] <= count:
            count -= int(sizes[place])
            chosen[words[inner][first[place]]] = True
        if not count:
            break
    return chosen[words] & inner
