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
        special = [i for i in roles if i is not None]
        self.ordinary: Table = np.setdiff1d(np.arange(tokenizer.vocab_size), special)
        self.begins = tokenizer.begins_word if data.whole_words else None

    def apply(
        self, ids: Table, attention_mask: Table, generator: np.random.Generator
    ) -> tuple[Table, Table]:
        """Masked ids and labels, both (B, S). In every row the given share of its tokens, rounded
        and at least one, is to be predicted; the first and last token of a row never are."""
        inner = attention_mask.astype(np.bool_)
        inner[:, 0] = False
        inner[np.arange(len(ids)), attention_mask.sum(axis=1) - 1] = False
        chosen = self._choose(ids, inner, generator)
        labels = np.where(chosen, ids, IGNORED)
        drawn = generator.random(ids.shape)
        others = generator.choice(self.ordinary, ids.shape)
        masked, random = self.shares
        swapped = np.where(drawn < masked, self.mask_id, others)
        return np.where(chosen & (drawn < masked + random), swapped, ids), labels

    def _choose(self, ids: Table, inner: Any, generator: np.random.Generator) -> Any:
        """The tokens to predict: those of the lowest random numbers; with whole words, every
        token has the number of its word's first."""
        order = generator.random(ids.shape)
        if self.begins is not None:
            places = np.where(self.begins[ids] | ~inner, np.arange(ids.shape[1]), 0)
            first = np.maximum.accumulate(places, axis=1)
            order = np.take_along_axis(order, first, axis=1)
        order = np.where(inner, order, 2.0)
        wanted = np.maximum(1, np.rint(self.fraction * inner.sum(axis=1))).astype(np.int64)
        limit = np.take_along_axis(np.sort(order, axis=1), wanted[:, None] - 1, axis=1)
        return (order <= limit) & inner
