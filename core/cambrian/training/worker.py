"""The copy of the model that computes.

In float32 it is the model itself. In bfloat16 it is a copy whose weights are cast from the
float32 master weights after each step: its matrix products run in bfloat16 without a cast inside
the step, which autocast does again and again, and the optimizer never sees a rounded weight
(Micikevicius et al. 2018, "Mixed Precision Training", section 3.1).
"""

# The kernels over lists of tensors are what torch's own optimizers call, but have no public names.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from cambrian.model import Batch, Losses, Model


class Worker:
    """Computes the losses of a model's updates and leaves their gradients on the model."""

    def __init__(self, model: Model, dtype: torch.dtype, compiled: bool) -> None:
        self.master = model
        self.copied = dtype is not torch.float32
        self.model = reduced_copy(model, dtype) if self.copied else model
        pairs = zip(model.parameters(), self.model.parameters(), strict=True)
        self.pairs = [(master, own) for master, own in pairs if master.requires_grad]
        self.updates = list(self.model.updates())
        self.losses: list[Callable[[Batch], Losses]] = [u.loss for u in self.updates]
        if compiled:
            self.losses = [torch.compile(loss) for loss in self.losses]

    def gradients(
        self, index: int, batches: Sequence[Batch], movable: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Add up the gradients of update `index` over micro-batches; return the mean losses.

        `movable` are the master parameters that the update moves; the others do not require
        gradients meanwhile.
        """
        chosen = {id(p) for p in movable}
        pairs = [(m, w) for m, w in self.pairs if id(m) in chosen]
        for master, own in pairs:
            master.grad = own.grad = None
        total: dict[str, Tensor] = {}
        with frozen(own for master, own in self.pairs if id(master) not in chosen):
            for batch in batches:
                shares = self.losses[index](batch)
                if len(batches) > 1:
                    shares = {name: loss / len(batches) for name, loss in shares.items()}
                shares["loss"].backward()
                self._deliver(pairs)
                for name, value in shares.items():
                    share = value.detach().float()
                    total[name] = total[name] + share if name in total else share
        return total

    @torch.no_grad()
    def _deliver(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Move the copy's gradients to the master, where they add up in float32."""
        if not self.copied:
            return
        fresh: tuple[list[Tensor], list[Tensor]] = [], []
        later: tuple[list[Tensor], list[Tensor]] = [], []
        for master, own in pairs:
            if own.grad is None:
                continue
            sums, grads = fresh if master.grad is None else later
            if master.grad is None:
                master.grad = torch.empty_like(master)
            sums.append(master.grad)
            grads.append(own.grad)
            own.grad = None
        if fresh[0]:
            torch._foreach_copy_(*fresh)
        if later[0]:
            torch._foreach_add_(*later)

    @torch.no_grad()
    def refresh(self) -> None:
        """Cast the master's weights into the copy."""
        if self.copied:
            masters, copies = zip(*self.pairs, strict=True)
            torch._foreach_copy_(copies, masters)


@contextmanager
def frozen(parameters: Iterable[Tensor]) -> Generator[None]:
    """Let the parameters, which require gradients, do without meanwhile."""
    held = [parameter.requires_grad_(False) for parameter in parameters]
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


def reduced_copy(model: Model, dtype: torch.dtype) -> Model:
    """A copy with weights in `dtype` that shares the model's buffers.

    A module with buffers of its own, such as batch normalisation with its running statistics,
    keeps its few weights in float32 beside them: torch has no kernel for a mixture.
    """
    reduced = copy.deepcopy(model)
    for own, master in zip(reduced.modules(), model.modules(), strict=True):
        buffers = list(master.named_buffers(recurse=False))
        for name, buffer in buffers:
            setattr(own, name, buffer)
        if not any(buffer.is_floating_point() for _, buffer in buffers):
            for parameter in own.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
    return reduced
