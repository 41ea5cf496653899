"""State that a graph makes longer in place: buffers with room behind what is filled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime

from cambrian.runtime import Array

ROOM = 128  # entries that a buffer has at least


class Buffers:
    """All of a graph's state that grows, each value with the same number of entries filled.

    bindings: the engine's, by its session, which have them as inputs and as outputs; a step that
        goes on with the same buffers need not bind them again.
    """

    def __init__(
        self, values: Mapping[str, Array], axes: Mapping[str, int], room: int, device: str
    ) -> None:
        """Copies of the values, with room for at least so many entries along their axes."""
        self.axes = axes
        self.filled = next(value.shape[axes[name]] for name, value in values.items())
        self.room = max(room, self.filled, ROOM)
        self.bindings: dict[Any, Any] = {}
        self.values: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, value in values.items():
            before, after = value.shape[: axes[name]], value.shape[axes[name] + 1 :]
            whole = np.empty((*before, self.room, *after), value.dtype)  # the rest is never read
            whole[(*[slice(None)] * len(before), slice(self.filled))] = value
            self.values[name] = onnxruntime.OrtValue.ortvalue_from_numpy(whole, device)
            self.shapes[name] = whole.shape

    def held(self) -> dict[str, Held]:
        """What is filled by now."""
        return {name: Held(self, name, self.filled) for name in self.values}


@dataclass(frozen=True, slots=True)
class Held:
    """The first `length` entries of one of the buffers.

    Whoever goes on with them first writes behind them, in place; whoever comes second (a branch)
    finds more filled than it holds, and is given a copy.
    """

    buffers: Buffers
    name: str
    length: int

    def shape(self) -> tuple[int, ...]:
        """The shape of what is held."""
        shape, axis = self.buffers.shapes[self.name], self.buffers.axes[self.name]
        return (*shape[:axis], self.length, *shape[axis + 1 :])

    def numpy(self) -> Array:
        """What is held; a view where the buffer is in the CPU's memory."""
        ahead = [slice(None)] * self.buffers.axes[self.name]
        return self.buffers.values[self.name].numpy()[(*ahead, slice(self.length))]


def reserve(values: Mapping[str, Any], axes: Mapping[str, int], total: int, device: str) -> Buffers:
    """Buffers that hold these values (arrays, the engine's, or Held) and have room for `total`
    entries, nobody's to write but the caller's: their own, if that is what they are."""
    first, room = next(iter(values.values())), total
    if isinstance(first, Held):
        buffers = first.buffers
        theirs = values.keys() == buffers.values.keys() and all(
            isinstance(x, Held) and x.buffers is buffers and x.length == buffers.filled
            for x in values.values()
        )
        if theirs and total <= buffers.room:
            return buffers
        # Doubled, so that all of the growing copies an entry about once.
        room = buffers.room if total <= buffers.room else max(total, 2 * buffers.room)
    arrays = {n: x if isinstance(x, np.ndarray) else x.numpy() for n, x in values.items()}
    return Buffers(arrays, axes, room, device)


def take(values: Mapping[str, Held], rows: Array, device: str) -> dict[str, Held]:
    """The given rows, in buffers of their own."""
    first = next(iter(values.values()), None)
    if first is None:
        return {}
    index = rows.astype(np.int64)
    arrays = {name: value.numpy()[index] for name, value in values.items()}
    return Buffers(arrays, first.buffers.axes, first.buffers.room, device).held()
