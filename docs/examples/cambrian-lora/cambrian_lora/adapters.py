"""Adapters of linear layers: W acts as W + BA * alpha / rank, and W itself never changes."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cambrian_lora.config import LoraConfig


class Adapter(nn.Module):
    """The change of one matrix (out, in): A (rank, in) is random and B (out, rank) is 0, so that
    training starts from the model as it was (Hu et al. 2021, section 4.1)."""

    def __init__(self, weight: Tensor, config: LoraConfig, random: torch.Generator) -> None:
        super().__init__()
        out, width = weight.shape
        bound = width**-0.5
        self.A = nn.Parameter(
            torch.empty(config.rank, width).uniform_(-bound, bound, generator=random)
        )
        self.B = nn.Parameter(torch.zeros(out, config.rank))
        self.scale = config.alpha / config.rank

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) to what is added to the layer's output (..., out)."""
        return F.linear(F.linear(x, self.A) * self.scale, self.B)

    def change(self) -> Tensor:
        """The same as a matrix (out, in)."""
        return self.B @ self.A * self.scale


class Adapted(nn.Linear):
    """A linear layer, its own weight and bias under their own names, and an adapter."""

    def __init__(self, layer: nn.Linear, adapter: Adapter) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.lora = adapter

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.lora(input)

    def merged(self, weight: nn.Parameter) -> nn.Linear:
        """A plain layer with this weight."""
        layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        layer.weight, layer.bias = weight, self.bias
        return layer


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name matches one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def trained_whole(
    model: nn.Module, config: LoraConfig, fresh: Collection[str]
) -> set[nn.Parameter]:
    """The parameters that are trained as they are: those that begin fresh, and `config.whole`."""
    named = model.named_parameters(remove_duplicate=False)
    return {p for name, p in named if name in fresh or matches(name, config.whole)}


def adaptable(model: nn.Module, whole: Iterable[nn.Parameter]) -> dict[str, nn.Linear]:
    """The linear layers that an adapter can stand for: nothing but such layers reads their matrix,
    and it is not trained whole."""
    modules = dict(model.named_modules(remove_duplicate=False))
    linear = {name: module for name, module in modules.items() if type(module) is nn.Linear}
    others = [module for module in modules.values() if type(module) is not nn.Linear]
    taken = {*whole, *(p for module in others for p in module.parameters(recurse=False))}
    return {name: layer for name, layer in linear.items() if layer.weight not in taken}


def adapt(model: nn.Module, config: LoraConfig, fresh: Collection[str], seed: int) -> None:
    """Put adapters into the model and freeze what is neither theirs nor trained whole.

    Layers that share a matrix share its adapter.
    """
    whole = trained_whole(model, config, fresh)
    layers = adaptable(model, whole)
    chosen = {layer.weight for name, layer in layers.items() if matches(name, config.targets)}
    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter in whole)
    adapters: dict[Tensor, Adapter] = {}
    for name, layer in layers.items():
        weight = layer.weight
        if weight in chosen:
            if weight not in adapters:
                adapters[weight] = Adapter(weight, config, random)
            model.set_submodule(name, Adapted(layer, adapters[weight]))


@contextmanager
def merged(model: nn.Module) -> Generator[None]:
    """Meanwhile, plain layers with W + BA * alpha / rank in the adapted ones' places.

    A matrix that layers share is merged once, and shared again.
    """
    modules = model.named_modules(remove_duplicate=False)
    adapted = {name: module for name, module in modules if isinstance(module, Adapted)}
    sums = {
        layer.weight: nn.Parameter(layer.weight.detach() + layer.lora.change().detach())
        for layer in adapted.values()
    }
    for name, layer in adapted.items():
        model.set_submodule(name, layer.merged(sums[layer.weight]))
    try:
        yield
    finally:
        for name, layer in adapted.items():
            model.set_submodule(name, layer)
