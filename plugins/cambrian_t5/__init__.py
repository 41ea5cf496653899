"""The T5 family (Raffel et al. 2020): encoder-decoders, text to text. No torch here."""

from __future__ import annotations

from collections.abc import Iterable

from cambrian.config import OptimizerConfig, Recipe, TrainConfig
from cambrian.hookspecs import hookimpl
from cambrian.specs import ModelSpec, Ref
from cambrian_t5.config import T5Config, T5Data


@hookimpl
def register_models() -> Iterable[ModelSpec]:
    """T5, by default of T5 1.0 small's size."""
    return [
        ModelSpec(
            name="t5",
            task="text2text-generation",
            summary="encoder-decoder transformer, T5 1.0, 1.1 and Flan-T5",
            config=T5Config,
            model=Ref("cambrian_t5.model:T5"),
            processor=Ref("cambrian.data.tokenizer:Tokenizer"),
            data=Ref("cambrian_t5.data:prepare"),
            pipeline=Ref("cambrian_t5.pipeline:Text2Text"),
            weights=Ref("cambrian_t5.weights:WEIGHTS"),
            recipe=Recipe(
                optimizer=OptimizerConfig(
                    name="muon",
                    adamw_parameters=("lm_head.weight",),
                    lr=0.06,  # what AdamW moves is above all the embedding, whose scale is 1
                    muon_lr=0.01,
                    warmup_steps=100,
                    schedule="linear",
                    min_lr_ratio=0.0,
                ),
                data=T5Data(),
            ),
            fine_tuning=Recipe(
                train=TrainConfig(batch_size=8, evaluate_every=100),
                optimizer=OptimizerConfig(lr=3e-4, betas=(0.9, 0.99), schedule="linear"),
                data=T5Data(),
            ),
            example={
                "model": {
                    "d_model": 32,
                    "d_kv": 8,
                    "d_ff": 48,
                    "num_layers": 2,
                    "num_heads": 3,
                    "n_positions": 24,
                    "feed_forward_proj": "gated-gelu",
                    "dropout_rate": 0.0,
                },
                "train": {"steps": 12, "batch_size": 4, "evaluate_every": 6, "evaluate_batches": 2},
                "optimizer": {"warmup_steps": 2},
            },
            example_inputs=("The", "A longer one"),
            model_type="t5",
            model_class="T5ForConditionalGeneration",
        )
    ]
