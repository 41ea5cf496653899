"""Optimizers of an update: which parameters decay, which Muon moves, and how rates go."""

# The kernels over lists of tensors are what torch's own optimizers call, but have no public names.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cambrian.config import OptimizerConfig
from cambrian.config import update as changed
from cambrian.model import Update
from cambrian.training.muon import Muon


class Player:
    """One update's parameters, save frozen ones, and the optimizers that move them."""

    def __init__(self, update: Update, config: OptimizerConfig) -> None:
        self.name = update.name
        self.every = update.every
        self.config = changed(config, update.optimizer, f"update '{update.name}'")
        named = update.module.named_parameters()
        self.names = {p: name for name, p in named if p.requires_grad}
        self.parameters = list(self.names)
        self.optimizers = build(update.module, self.config)

    def step(self, steps_done: int, steps: int, clip: float) -> Tensor:
        """Clip, set the rates for this step, move, and return the gradient's norm."""
        norm = clip_gradients(self.parameters, clip)
        factor = rate_factor(self.config, steps_done, steps)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimizer.step()
        return norm

    def rate(self, steps_done: int, steps: int) -> float:
        """The learning rate of this step (AdamW's, where Muon has its own beside it)."""
        return self.config.lr * rate_factor(self.config, steps_done, steps)

    def state(self) -> dict[str, Tensor]:
        """The optimizers' state as named tensors."""
        tensors: dict[str, Tensor] = {}
        for kind, optimizer in self.optimizers.items():
            for parameter, name in self.names.items():
                for key, value in optimizer.state.get(parameter, {}).items():
                    tensors[f"{self.name}/{kind}/{name}/{key}"] = torch.as_tensor(value)
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned."""
        owners = {name: p for p, name in self.names.items()}
        for name, value in tensors.items():
            player, kind, rest = name.split("/", 2)
            if player == self.name:
                parameter, key = rest.rsplit("/", 1)
                owner = owners[parameter]
                # A moment lies in memory as its parameter does (channels_last, say): the fused
                # kernel takes no other.
                like = torch.empty_like(owner).copy_ if value.shape == owner.shape else None
                held = like(value) if like else value.to(owner.device)
                self.optimizers[kind].state[owner][key] = held


def build(module: nn.Module, config: OptimizerConfig) -> dict[str, Optimizer]:
    """Build the optimizers of a module's parameters, save those that are frozen.

    Parameters with two or more dimensions decay; biases and norms do not. Muon takes the hidden
    matrices: two-dimensional, no embedding's, and matched by no pattern of `adamw_parameters`.
    """
    embeddings = {
        id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }

    def hidden(name: str, p: nn.Parameter) -> bool:
        excluded = any(fnmatchcase(name, pattern) for pattern in config.adamw_parameters)
        return p.ndim == 2 and id(p) not in embeddings and not excluded

    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    matrices = [p for n, p in named if config.name == "muon" and hidden(n, p)]
    taken = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in taken]
    optimizers: dict[str, Optimizer] = {}
    if rest:
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizers["adamw"] = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            fused=True,
        )
    if matrices:
        optimizers["muon"] = Muon(
            matrices,
            lr=config.muon_lr,
            momentum=config.muon_momentum,
            weight_decay=config.weight_decay,
        )
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


@torch.no_grad()
def clip_gradients(parameters: Sequence[Tensor], limit: float) -> Tensor:
    """Return the gradients' norm over all parameters; above `limit`, unless 0, shrink them to it.

    torch.nn.utils.clip_grad_norm_ without its calls from Python for every parameter.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if limit > 0:
        torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def rate_factor(config: OptimizerConfig, steps_done: int, steps: int) -> float:
    """The learning rate of a step as a share of its peak.

    A function of the step alone, so that there is no schedule's state to resume. Warm-up ends at
    the peak; the last step of the run has about `min_lr_ratio` of it.
    """
    if steps_done < config.warmup_steps:
        return (steps_done + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    span = max(1, steps - config.warmup_steps)
    progress = min(1.0, (steps_done - config.warmup_steps + 1) / span)
    fall = progress if config.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * progress))
    return 1.0 - (1.0 - config.min_lr_ratio) * fall
