"""Batches of rows of unequal length, alike in length where they can be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cambrian.data import Arrays
from cambrian.errors import UsageError

Ids: TypeAlias = NDArray[np.integer[Any]]
Collate = Callable[[Ids, np.random.Generator], Arrays]
"""collate(rows, generator): the batch of these rows; what it draws, it draws from the generator."""
POOL = 50  # batches' worth of rows that are sorted by length together


class Ragged(Sequence[Ids]):
    """Rows of ids, kept end to end: row i is tokens[offsets[i] : offsets[i + 1]]."""

    def __init__(self, rows: Iterable[Sequence[int]], dtype: type[np.integer[Any]] = np.int32):
        pieces = [np.asarray(row, dtype) for row in rows]
        self.tokens = np.concatenate(pieces) if pieces else np.zeros(0, dtype)
        self.offsets = np.cumsum([0, *(len(piece) for piece in pieces)])

    @property
    def lengths(self) -> Ids:
        """Ids in each row."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: Any) -> Any:
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]


class RowBatches:
    """Batches over `len(lengths)` rows; which rows batch i has, and all that its `collate` draws,
    depends on i and the seed alone.

    Shuffled: each epoch is a permutation, cut into pools; a pool is sorted by length and cut into
    batches, which come in an order of their own. Every row is in one batch of an epoch, and the
    last batch of a pool may have fewer rows. Not shuffled: rows in order, and the same draws each
    time.
    """

    def __init__(
        self,
        lengths: Ids,
        collate: Collate,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
    ) -> None:
        """UsageError for no rows or a batch_size below 1."""
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size} must be at least 1.")
        if not len(lengths):
            raise UsageError("There are no examples to make batches of; give more data.")
        self._lengths = np.asarray(lengths)
        self._collate = collate
        self._batch_size = batch_size
        self._seed = seed % 2**64
        self._shuffle = shuffle
        self._epoch: tuple[int, list[Ids]] | None = None

    def __len__(self) -> int:
        """Batches in one pass."""
        return (len(self._lengths) + self._batch_size - 1) // self._batch_size

    def batch(self, index: int) -> Arrays:
        """Batch number `index`; unshuffled, numbers past one pass begin again."""
        epoch, position = divmod(index, len(self))
        if not self._shuffle:
            epoch, index = 0, position
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self._plan(epoch)
        rows = self._epoch[1][position]
        # The epochs' own draws have keys of their own: a batch's number is never that large.
        key = np.array([self._seed, index], np.uint64)
        return self._collate(rows, np.random.Generator(np.random.Philox(key=key)))

    def _plan(self, epoch: int) -> list[Ids]:
        size, count = self._batch_size, len(self._lengths)
        if not self._shuffle:
            return np.split(np.arange(count), range(size, count, size))
        key = np.array([self._seed, 2**63 + epoch], np.uint64)  # a list would pass through floats
        generator = np.random.Generator(np.random.Philox(key=key))
        order = generator.permutation(count)
        batches: list[Ids] = []
        for pool in np.split(order, range(size * POOL, count, size * POOL)):
            alike = pool[np.argsort(self._lengths[pool], kind="stable")]
            batches += np.split(alike, range(size, len(alike), size))
        return [batches[i] for i in generator.permutation(len(batches))]


def padded(rows: Sequence[Sequence[int] | Ids], fill: int) -> NDArray[np.int64]:
    """Rows side by side, (rows, longest), filled up on the right; at least one column wide."""
    table = np.full((len(rows), max([1, *map(len, rows)])), fill, np.int64)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return table
