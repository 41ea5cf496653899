"""Windows over a stream of tokens: batches for next-token prediction.

Both kinds of order are pure functions of the batch's number, so that nothing but that number is
needed to resume; what is kept in memory is one permutation of window numbers.
"""

from __future__ import annotations

import mmap
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cambrian.data import IGNORED, Arrays
from cambrian.errors import UsageError

Tokens: TypeAlias = NDArray[np.unsignedinteger[Any]]
RELEASE_EVERY = 8  # batches


class Windows:
    """Batches {"input_ids", "labels"}, int64 (rows, length); labels are the inputs one token on.

    Shuffled: an epoch is a permutation of windows that tile the stream from an offset, both drawn
    by Philox under the key (seed, epoch). The two windows at the stream's ends are moved inside
    it, so that every token is a label in every epoch and none is cut off. Batches are always
    full: one that reaches past an epoch takes its other rows from the next.

    Not shuffled: windows in order, every token but the first exactly once a label. The last
    window is filled up with inputs 0 and labels -100 and the last batch may have fewer rows, so
    the exact mean loss is that of the batches weighted by their labels other than -100.
    """

    def __init__(
        self, tokens: Tokens, *, length: int, batch_size: int, seed: int, shuffle: bool = True
    ) -> None:
        """`tokens` is 1-d; UsageError if it does not fill one window (or, in order, one label)."""
        if length < 1 or batch_size < 1:
            raise UsageError(f"length={length} and batch_size={batch_size} must be at least 1.")
        needed = length + 1 if shuffle else 2
        if len(tokens) < needed:
            raise UsageError(
                f"The text has {len(tokens)} tokens, but one window of {length} needs {needed}; "
                "give more text or a shorter context."
            )
        self._tokens = tokens
        self._length = length
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._targets = len(tokens) - 1
        self._count, self._offsets = _tiling(self._targets, length, shuffle)
        self._epoch: tuple[int, int, Tokens] | None = None  # number, offset, order

    def __len__(self) -> int:
        """Batches in one pass over the tokens."""
        return (self._count + self._batch_size - 1) // self._batch_size

    def batch(self, index: int) -> Arrays:
        """Batch number `index`; in order, numbers past one pass begin again."""
        if self._shuffle:
            first = index * self._batch_size
            starts = [self._shuffled(n) for n in range(first, first + self._batch_size)]
        else:
            first = index % len(self) * self._batch_size
            last = min(first + self._batch_size, self._count)
            starts = [n * self._length for n in range(first, last)]
        inputs = np.zeros((len(starts), self._length), np.int64)
        labels = np.full((len(starts), self._length), IGNORED, np.int64)
        for row, start in enumerate(starts):
            piece = self._tokens[start : start + self._length + 1]
            inputs[row, : len(piece) - 1] = piece[:-1]
            labels[row, : len(piece) - 1] = piece[1:]
        if index % RELEASE_EVERY == 0:
            _release(self._tokens)
        return {"input_ids": inputs, "labels": labels}

    def _shuffled(self, number: int) -> int:
        """The start of window `number` of the endless sequence of epochs."""
        epoch, position = divmod(number, self._count)
        if self._epoch is None or self._epoch[0] != epoch:
            key = np.array([self._seed % 2**64, epoch], np.uint64)  # a list may pass through floats
            generator = np.random.Generator(np.random.Philox(key=key))
            offset = int(generator.integers(self._offsets.start, self._offsets.stop))
            kind = np.uint32 if self._count < 2**32 else np.uint64
            order = np.arange(self._count, dtype=kind)
            generator.shuffle(order)
            self._epoch = epoch, offset, order
        _, offset, order = self._epoch
        start = int(order[position]) * self._length - offset
        return min(max(start, 0), self._targets - self._length)


def _tiling(targets: int, length: int, shuffle: bool) -> tuple[int, range]:
    """Count the windows that cover all targets and say how far they may be shifted left.

    The count is the same for every shift, so that a batch's number alone tells its epoch; one
    more window than necessary is taken where the choice of shifts would be small without it.
    """
    count = -(-targets // length)
    slack = count * length - targets
    if shuffle and slack < length // 2:
        count, slack = count + 1, slack + length
    return count, range(max(0, slack - length), min(slack, length) + 1)


def _release(tokens: Tokens) -> None:
    """Unmap the pages read so far: they stay in the system's cache but not in our memory."""
    if tokens.flags.writeable:  # what a private mapping has changed would be lost
        return
    mapped: Any = tokens
    while isinstance(mapped, np.ndarray):
        mapped = mapped.base
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
