"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) over stacks of matrices.

The arithmetic is that of torch.optim.Muon. A model's layers repeat a few shapes, so all matrices
of one shape are orthogonalised at once: on a CPU a product of small matrices is over sooner than
two threads have met, and fewer and larger ones keep them busy.
"""

# The kernels over lists of tensors are what torch's own optimizers call, but have no public names.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# The quintic's coefficients: steep at zero, bounded by 1.2 for singular values in [0, 1].
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPS = 1e-7


def orthogonalised(matrices: Sequence[Tensor]) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly, of matrices of one shape; (N, R, C) bfloat16.

    Newton-Schulz iterations drive every singular value to somewhere in 0.7 to 1.2. The products
    are taken on the smaller side, from the left or from the right, so that nothing is transposed.
    """
    a, b, c = QUINTIC
    x = torch.stack([matrix.bfloat16() for matrix in matrices])
    x /= torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=EPS)
    wide = x.shape[1] <= x.shape[2]
    for _ in range(ITERATIONS):
        gram = x @ x.mT if wide else x.mT @ x
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        left, right = (polynomial, x) if wide else (x, polynomial)
        x = torch.baddbmm(x, left, right, beta=a)
    return x


class Muon(Optimizer):
    """Nesterov momentum, orthogonalised, and decay apart from it; for matrices only."""

    def __init__(
        self, matrices: Sequence[Tensor], *, lr: float, momentum: float, weight_decay: float
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            stacks: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    stacks[matrix.shape].append(matrix)
            for stack in stacks.values():
                self._move(stack, group)

    def _move(self, stack: list[Tensor], group: dict[str, Any]) -> None:
        """Move matrices of one shape."""
        gradients = [m.grad for m in stack if m.grad is not None]
        for matrix in stack:
            if not self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        buffers = [self.state[m]["momentum_buffer"] for m in stack]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, buffers, group["momentum"])
        rows, columns = stack[0].shape
        rate = group["lr"] * math.sqrt(max(1.0, rows / columns))  # of equal effect on tall ones
        torch._foreach_mul_(stack, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(stack, orthogonalised(ahead).unbind(), alpha=-rate)
