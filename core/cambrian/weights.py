"""The Weights interface: a family's map between a checkpoint's tensors and its module's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor


class Weights(Protocol):
    """Converts state dicts. Without one, names in the file are the module's own.

    `load` receives what a file holds and returns the module's state dict; it drops known buffers
    and raises BrokenFile where names are missing, unknown or of the wrong shape. `save` is the
    reverse: the reference's names, each shared tensor once.
    """

    def load(self, tensors: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]: ...

    def save(self, tensors: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]: ...
