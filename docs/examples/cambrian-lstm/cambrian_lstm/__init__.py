"""An LSTM language model (Hochreiter and Schmidhuber 1997; as in Sundermeyer et al. 2012)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cambrian import ModelSpec, OptimizerConfig, Recipe, Ref, TrainConfig, hookimpl
from cambrian.data.config import TextData


@dataclass(frozen=True, kw_only=True)
class LSTMConfig:
    """Sizes; the vocabulary is the tokenizer's."""

    vocab_size: int = 4096
    embedding_size: int = 256
    hidden_size: int = 1024
    eos_token_id: int | None = None


@hookimpl
def register_models() -> Iterable[ModelSpec]:
    """The one architecture, with what suits it from scratch."""
    return [
        ModelSpec(
            name="lstm",
            task="text-generation",
            summary="one LSTM layer, 1,024 wide, as text generators had it before attention",
            config=LSTMConfig,
            model=Ref("cambrian_lstm.model:LSTM"),
            processor=Ref("cambrian.data.tokenizer:Tokenizer"),
            data=Ref("cambrian.data.next_tokens:prepare"),
            pipeline=Ref("cambrian.text_pipeline:TextGeneration"),
            recipe=Recipe(
                train=TrainConfig(steps=400, batch_size=32, evaluate_every=100),
                optimizer=OptimizerConfig(lr=4e-3, warmup_steps=50),
                data=TextData(vocab_size=1024, length=64),
            ),
            example={
                "model": {"embedding_size": 16, "hidden_size": 32},
                "train": {"steps": 12, "batch_size": 4, "evaluate_every": 6, "evaluate_batches": 2},
                "optimizer": {"warmup_steps": 2},
                "data": {"tokenizer": "char", "length": 16},
            },
            example_inputs=("The", "A longer one"),
        )
    ]
