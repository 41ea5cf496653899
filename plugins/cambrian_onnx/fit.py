"""Weights in 4 bits that are fitted to what goes into their products: GPTQ.

The weights of an output are rounded in order, 32 of them to a grid of 16 steps, and each one's
error is made good by those that are not rounded yet, as far as the inputs, which are correlated,
allow it. Source: Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", algorithm 1; grids with a zero point of their own.

Shapes: N outputs and K inputs of a product, whose weights are (N, K).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cambrian.artifact import growing
from cambrian.model import Model
from cambrian.runtime import Array, Session, State
from cambrian.runtime.torch import TorchSession
from cambrian_onnx.quantize import FINE, SMALL, STEPS

DAMPING = 0.01  # of the moments' mean diagonal, for inputs that hardly vary
WORST = 0.01  # of a product's power may be error; what would lose more keeps its weights
ROOM = 1 << 30  # bytes of moments that are gathered at once


def fit(model: Model, drive: Callable[[Session], None]) -> Model:
    """A copy of `model` (eval mode) whose products are rounded, except those with a table whose
    rows are looked up, and those outside the graphs that are run token by token.

    `drive` runs the model's task on a session; it is called once for each gibibyte of moments.
    """
    result = copy.deepcopy(model)
    for group in groups(result):
        session = Listener(result, group)
        drive(session)
        for weight, moments in session.moments.items():
            rounded = fitted(weight.detach(), moments)
            if lost(weight.detach(), rounded, moments) <= WORST:
                weight.data = rounded
    return result


def groups(model: Model) -> Iterator[list[nn.Linear]]:
    """The products, in order, in groups whose moments have room."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    group: list[nn.Linear] = []
    size = 0
    for module in model.modules():
        if not isinstance(module, nn.Linear) or id(module.weight) in tables:
            continue
        if module.weight.numel() < SMALL:
            continue
        more = 4 * module.in_features**2
        if group and size + more > ROOM:
            yield group
            group, size = [], 0
        group.append(module)
        size += more
    if group:
        yield group


class Listener(TorchSession):
    """Adds up the second moments (K, K) of what goes into products, by their weights, in graphs
    that are run token by token."""

    def __init__(self, model: Model, products: list[nn.Linear]) -> None:
        super().__init__(model)
        self.moments: dict[Tensor, Tensor] = {}
        self._products = products

    def run(
        self, graph: str, inputs: Mapping[str, Array], state: State | None = None
    ) -> tuple[dict[str, Array], State]:
        if not growing(self.signatures[graph]):
            return super().run(graph, inputs, state)
        hooks = [product.register_forward_pre_hook(self._hear) for product in self._products]
        try:
            return super().run(graph, inputs, state)
        finally:
            for hook in hooks:
                hook.remove()

    def _hear(self, product: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(product, nn.Linear)
        rows = inputs[0].flatten(0, -2).float()
        known = self.moments.get(product.weight)
        self.moments[product.weight] = rows.T @ rows if known is None else known + rows.T @ rows


def fitted(weight: Tensor, moments: Tensor) -> Tensor:
    """The weights (N, K), rounded for inputs of these second moments (K, K)."""
    damped = moments.double()
    damped.diagonal().add_(DAMPING * damped.diagonal().mean() + torch.finfo(torch.float32).tiny)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True).to(weight.dtype)
    left = weight.T.clone(memory_format=torch.contiguous_format)
    for start in range(0, len(left), FINE):
        rows, own = left[start : start + FINE], factor[start : start + FINE]
        scale, zero = grid(rows)
        errors = torch.empty_like(rows)
        for n, row in enumerate(rows):
            steps = ((row / scale).round() + zero).clamp(0, STEPS) - zero
            errors[n] = (row - steps * scale) / own[n, start + n]
            row.copy_(steps * scale)
            ahead = slice(start + n + 1, start + len(rows))
            rows[n + 1 :].addr_(own[n, ahead], errors[n], alpha=-1)
        left[start + FINE :].addmm_(own[:, start + FINE :].T, errors, alpha=-1)
    return left.T.contiguous()


def grid(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of each column (K, N): a scale, and the step that stands for 0. The grid spans the column's
    values, and 0."""
    low, high = rows.amin(0).clamp(max=0), rows.amax(0).clamp(min=0)
    scale = (high - low) / STEPS
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return scale, (-low / scale).round()


def lost(weight: Tensor, rounded: Tensor, moments: Tensor) -> float:
    """The power of the error that rounding leaves in a product, over the product's own."""
    error = weight - rounded
    power = torch.sum((weight @ moments) * weight)
    return float(torch.sum((error @ moments) * error) / power) if power > 0 else 1.0
