"""The GPT family: GPT-2 (Radford et al. 2019) and what shares its architecture. No torch here."""

from __future__ import annotations

from collections.abc import Iterable

from cambrian.config import OptimizerConfig, Recipe, TrainConfig
from cambrian.data.config import TextData
from cambrian.hookspecs import hookimpl
from cambrian.specs import ModelSpec, Ref
from cambrian_gpt.config import GPTConfig


@hookimpl
def register_models() -> Iterable[ModelSpec]:
    """GPT, by default of GPT-2 small's size."""
    return [
        ModelSpec(
            name="gpt",
            task="text-generation",
            summary="decoder-only transformer, GPT-2",
            config=GPTConfig,
            model=Ref("cambrian_gpt.model:GPT"),
            processor=Ref("cambrian.data.tokenizer:Tokenizer"),
            data=Ref("cambrian_gpt.data:prepare"),
            pipeline=Ref("cambrian_gpt.pipeline:TextGeneration"),
            weights=Ref("cambrian_gpt.weights:WEIGHTS"),
            recipe=Recipe(
                optimizer=OptimizerConfig(
                    name="muon",
                    adamw_parameters=("lm_head.weight",),
                    lr=3e-3,
                    muon_lr=0.02,
                    warmup_steps=50,
                    schedule="linear",
                    min_lr_ratio=0.0,
                ),
                data=TextData(),
            ),
            fine_tuning=Recipe(
                train=TrainConfig(batch_size=8, evaluate_every=100),
                optimizer=OptimizerConfig(lr=5e-5, betas=(0.9, 0.99), schedule="linear"),
                data=TextData(),
            ),
            example={
                "model": {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 24},
                "train": {"steps": 12, "batch_size": 4, "evaluate_every": 6, "evaluate_batches": 2},
                "optimizer": {"warmup_steps": 2},
                "data": {"tokenizer": "char"},
            },
            example_inputs=("The", "A longer one"),
            model_type="gpt2",
            model_class="GPT2LMHeadModel",
        )
    ]
