"""Text to next-token batches."""

from __future__ import annotations

from dataclasses import replace

from cambrian.config import Recipe
from cambrian.data import Prepared
from cambrian.data.text import prepare_text
from cambrian.data.tokenizer import Tokenizer
from cambrian.data.windows import Windows
from cambrian.errors import UsageError
from cambrian_gpt.config import GPTConfig


def prepare(
    config: GPTConfig,
    recipe: Recipe,
    processor: Tokenizer | None = None,
    evaluate_only: bool = False,
) -> Prepared:
    """Windows of n_positions tokens, shuffled for training, in order for validation.

    From scratch, the config takes the tokenizer's vocabulary; going on from a checkpoint, the
    tokenizer must fit the model's (UsageError).
    """
    if processor is not None and processor.vocab_size > config.vocab_size:
        raise UsageError(
            f"The tokenizer has {processor.vocab_size} tokens but the model only "
            f"{config.vocab_size}; start from the tokenizer that the model was trained with."
        )
    length = recipe.data.length or config.n_positions
    if not 0 < length <= config.n_positions:
        raise UsageError(
            f"data.length must be from 1 to the model's n_positions, {config.n_positions}; "
            f"it is {length}."
        )
    text = prepare_text(recipe.data, processor)
    tokenizer, train = text.tokenizer, recipe.train
    if processor is None:
        end = tokenizer.eos_id
        config = replace(
            config, vocab_size=tokenizer.vocab_size, bos_token_id=end, eos_token_id=end
        )
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
