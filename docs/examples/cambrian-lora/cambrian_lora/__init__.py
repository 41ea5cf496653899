"""LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685) as a trainer. No torch here."""

from __future__ import annotations

from collections.abc import Iterable

from cambrian import Ref, TrainerSpec, hookimpl
from cambrian_lora.config import LoraConfig


@hookimpl
def register_trainers() -> Iterable[TrainerSpec]:
    """The built-in loop, over adapters alone."""
    return [
        TrainerSpec(
            name="lora",
            summary="low-rank adapters of linear layers, merged into the weights when saved",
            trainer=Ref("cambrian_lora.trainer:LoraTrainer"),
            config=LoraConfig,
            recipe={"optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.0}},
        )
    ]
