"""The Weights interface: a family's map between a checkpoint's tensors and its module's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor


class Weights(Protocol):
    """Converts state dicts. Without one, names in the file are the module's own.

    `load` receives what a file holds and returns it under the module's names; it drops what the
    module knowingly does without (buffers, another head) and raises BrokenFile where the file
    contradicts itself. Whether all is there, and in the right shape, core checks. For that it may
    first give `load` tensors on the meta device, which have shapes and types but no numbers, while
    `torch.equal` compares shapes; a family that needs numbers may then raise RuntimeError or
    TypeError, and is asked again with the real tensors. `save` is the reverse: the reference's
    names, each shared tensor once.
    """

    def load(self, tensors: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]: ...

    def save(self, tensors: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]: ...
