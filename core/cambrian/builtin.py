"""What core registers, through an entry point like everyone: the trainer and the torch engine."""

from __future__ import annotations

from collections.abc import Iterable

from cambrian.hookspecs import hookimpl
from cambrian.specs import LOOP, Ref, RuntimeSpec, TrainerSpec


@hookimpl
def register_trainers() -> Iterable[TrainerSpec]:
    """One loop over the model's updates."""
    return [
        TrainerSpec(
            name=LOOP,
            summary="one loop over the model's updates; CPU or one GPU; exact resume",
            trainer=Ref("cambrian.training.loop:LoopTrainer"),
        )
    ]


@hookimpl
def register_runtimes() -> Iterable[RuntimeSpec]:
    """PyTorch itself, for checkpoints."""
    return [
        RuntimeSpec(
            name="torch",
            summary="PyTorch, for checkpoints that are not exported",
            formats=("safetensors",),
            runtime=Ref("cambrian.runtime.torch:TorchRuntime"),
        )
    ]
