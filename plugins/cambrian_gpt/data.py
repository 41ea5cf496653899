"""Text to next-token batches, no longer than the context."""

from __future__ import annotations

from dataclasses import replace

from cambrian.config import Recipe
from cambrian.data import Prepared, next_tokens
from cambrian.data.tokenizer import Tokenizer
from cambrian.errors import UsageError
from cambrian_gpt.config import GPTConfig


def prepare(
    config: GPTConfig,
    recipe: Recipe,
    processor: Tokenizer | None = None,
    evaluate_only: bool = False,
) -> Prepared:
    """Windows of n_positions tokens, or of data.length where that is less (UsageError if more)."""
    length = recipe.data.length or config.n_positions
    if not 0 < length <= config.n_positions:
        raise UsageError(
            f"data.length must be from 1 to the model's n_positions, {config.n_positions}; "
            f"it is {length}."
        )
    prepared = next_tokens.prepare(config, recipe, processor, evaluate_only, length=length)
    if processor is not None:
        return prepared
    config = prepared.config  # GPT-2 begins a text with the token that ends one
    return replace(prepared, config=replace(config, bos_token_id=config.eos_token_id))
