"""State that a graph makes longer in place: buffers with room behind what is filled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime

from cambrian.runtime import Array

ROOM = 128  # entries that a buffer has at least


@dataclass
class Buffer:
    """An engine's value, and how many of its entries have been written by now."""

    value: Any
    filled: int


@dataclass(frozen=True)
class Held:
    """The first `length` entries of a buffer along `axis`.

    Whoever goes on with them first writes behind them, in place; whoever comes second (a branch)
    finds the buffer filled further, and is given one of its own. `total` is how many entries
    there are once the call is done that the buffer was reserved for.
    """

    buffer: Buffer
    length: int
    axis: int
    total: int = 0

    def shape(self) -> list[int]:
        """The shape of what is held."""
        shape = list(self.buffer.value.shape())
        shape[self.axis] = self.length
        return shape

    def numpy(self) -> Array:
        """What is held; a view where the buffer is in the CPU's memory."""
        return self.buffer.value.numpy()[(*[slice(None)] * self.axis, slice(self.length))]

    def reserve(self, total: int, device: str) -> Held:
        """The same, with room for `total` entries and nobody's to write but the caller's."""
        room = self._room()
        if total <= room and self.buffer.filled == self.length:
            return replace(self, total=total)
        while room < total:  # doubled, so that all of the growing copies an entry about once
            room *= 2
        return replace(held_in_buffer(self.numpy(), self.axis, room, device), total=total)

    def written(self) -> Held:
        """What is held once the call is done that the buffer was reserved for."""
        self.buffer.filled = self.total
        return replace(self, length=self.total)

    def take(self, rows: Array, device: str) -> Held:
        """The given rows, in a buffer of their own."""
        return held_in_buffer(self.numpy()[rows.astype(np.int64)], self.axis, self._room(), device)

    def _room(self) -> int:
        return self.buffer.value.shape()[self.axis]


def held_in_buffer(value: Array, axis: int, room: int, device: str) -> Held:
    """A value, copied into a buffer with at least so much room along the axis."""
    shape, length = list(value.shape), value.shape[axis]
    shape[axis] = max(room, length, ROOM)
    whole = np.empty(shape, value.dtype)  # what is not filled is never read
    whole[(*[slice(None)] * axis, slice(length))] = value
    buffer = Buffer(onnxruntime.OrtValue.ortvalue_from_numpy(whole, device), length)
    return Held(buffer, length, axis)
