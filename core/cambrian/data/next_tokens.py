"""Text to next-token batches, for any language model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cambrian.config import Recipe
from cambrian.data import Prepared
from cambrian.data.text import prepare_text
from cambrian.data.tokenizer import Tokenizer
from cambrian.data.windows import Windows
from cambrian.errors import UsageError


def prepare(
    config: Any,
    recipe: Recipe,
    processor: Tokenizer | None = None,
    evaluate_only: bool = False,
    *,
    length: int = 0,
) -> Prepared:
    """Windows of `length` tokens (unless given, of the recipe's `data.length`), shuffled for
    training, in order for validation.

    From scratch, the config takes the tokenizer's `vocab_size` and `eos_token_id`; going on from
    a checkpoint, the tokenizer must fit the model's vocabulary (UsageError).
    """
    if processor is not None and processor.vocab_size > config.vocab_size:
        raise UsageError(
            f"The tokenizer has {processor.vocab_size} tokens but the model only "
            f"{config.vocab_size}; start from the tokenizer that the model was trained with."
        )
    text = prepare_text(recipe.data, processor)
    tokenizer, train = text.tokenizer, recipe.train
    if processor is None:
        config = replace(config, vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eos_id)
    length = length or recipe.data.length
    validation = None
    if text.validation is not None:
        validation = Windows(
            text.validation,
            length=length,
            batch_size=train.batch_size,
            seed=train.seed,
            shuffle=False,
        )
    return Prepared(
        processor=tokenizer,
        config=config,
        train=(
            validation
            if evaluate_only and validation is not None
            else Windows(text.train, length=length, batch_size=train.batch_size, seed=train.seed)
        ),
        validation=validation,
        unit="tokens",
        units_per_row=length,
        summary=text.summary,
    )
