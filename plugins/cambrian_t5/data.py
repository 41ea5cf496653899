"""Pairs of texts, or raw text to be restored, to batches for the encoder and the decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cambrian.config import Recipe
from cambrian.data import IGNORED, Arrays, Prepared
from cambrian.data.config import TextData
from cambrian.data.records import paired, read_examples
from cambrian.data.rows import Ids, Ragged, RowBatches, padded
from cambrian.data.text import prepare_text
from cambrian.data.tokenizer import Specials, Tokenizer, fitted
from cambrian.errors import UsageError
from cambrian_t5.config import SENTINELS, T5Config, T5Data
from cambrian_t5.corruption import corrupt, raw_length

SPECIALS = Specials(
    roles={"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    last=tuple(f"<extra_id_{i}>" for i in reversed(range(SENTINELS))),
    single="$A </s>",
    pair="$A </s> $B </s>",
)


def prepare(
    config: T5Config,
    recipe: Recipe,
    processor: Tokenizer | None = None,
    evaluate_only: bool = False,
) -> Prepared:
    """Batches {"input_ids", "attention_mask", "labels"}, by the data's objective.

    From scratch, the config takes the tokenizer's vocabulary; going on from a checkpoint, the
    tokenizer must fit the model's (UsageError).
    """
    data: T5Data = recipe.data
    if processor is not None and processor.vocab_size > config.vocab_size:
        raise UsageError(
            f"The tokenizer has {processor.vocab_size} tokens but the model only "
            f"{config.vocab_size}; start from the tokenizer that the model was trained with."
        )
    length = data.length or config.n_positions
    if length < 4:
        raise UsageError(f"data.length must be at least 4, or 0 for n_positions; it is {length}.")
    if not 0 < data.noise_density < 1 or data.mean_noise_span_length < 1:
        raise UsageError(
            "data.noise_density must lie between 0 and 1, and data.mean_noise_span_length be at "
            "least 1."
        )
    kind = prepare_pairs if data.objective == "pairs" else prepare_spans
    return kind(config, recipe, processor, evaluate_only)


def prepare_pairs(
    config: T5Config, recipe: Recipe, processor: Tokenizer | None, evaluate_only: bool
) -> Prepared:
    """Sources behind the task's prefix, and targets."""
    data: T5Data = recipe.data
    examples = read_examples(data, paired(data), evaluate_only)
    prefix = data.prefix or config.task_prefix
    texts = (text for pair in examples.train for text in (prefix + pair[0], pair[1]))
    tokenizer = processor or fitted(data.tokenizer, data.vocab_size, texts, SPECIALS)
    length = data.length or config.n_positions

    def batches(side: Sequence[tuple[str, str]], shuffle: bool) -> RowBatches:
        sources = ended(tokenizer, [prefix + source for source, _ in side], length)
        targets = ended(tokenizer, [target for _, target in side], length)

        def collate(chosen: Ids, generator: np.random.Generator) -> Arrays:
            return batch(
                [sources[n] for n in chosen], [targets[n] for n in chosen], tokenizer.pad_id
            )

        return row_batches(sources.lengths + targets.lengths, collate, recipe, shuffle)

    held_out = batches(examples.held_out, shuffle=False) if examples.held_out else None
    whole = held_out if evaluate_only and held_out else batches(examples.train, shuffle=True)
    config = replace(fitted_config(config, tokenizer, processor), task_prefix=prefix)
    return Prepared(
        processor=tokenizer,
        config=config,
        train=whole,
        validation=held_out,
        summary=examples.summary,
        examples=examples.held_out,
    )


def prepare_spans(
    config: T5Config, recipe: Recipe, processor: Tokenizer | None, evaluate_only: bool
) -> Prepared:
    """Stretches of raw text, with spans replaced by sentinels; the target is what was there."""
    data: T5Data = recipe.data
    text = TextData(
        **{name: getattr(data, name) for name in TextData.__dataclass_fields__}  # pyright: ignore[reportArgumentType]
    )
    store = prepare_text(text, processor, specials=SPECIALS)
    tokenizer = store.tokenizer
    sentinels = sentinel_ids(tokenizer)
    length = data.length or config.n_positions
    whole = raw_length(length, data.noise_density, data.mean_noise_span_length)

    def batches(tokens: Any, shuffle: bool) -> RowBatches:
        starts = np.arange(0, max(1, len(tokens) - 1), whole)  # one token alone has no span
        lengths = np.minimum(whole, len(tokens) - starts)

        def rows(chosen: Ids, generator: np.random.Generator) -> Iterator[tuple[Any, Any]]:
            for n in chosen:
                piece = np.asarray(tokens[n * whole : (n + 1) * whole], np.int64)
                yield corrupt(
                    piece,
                    sentinels,
                    generator,
                    density=data.noise_density,
                    span=data.mean_noise_span_length,
                )

        def collate(chosen: Ids, generator: np.random.Generator) -> Arrays:
            end = np.array([tokenizer.eos_id])
            pairs = [(np.append(a, end), np.append(b, end)) for a, b in rows(chosen, generator)]
            return batch([a for a, _ in pairs], [b for _, b in pairs], tokenizer.pad_id)

        return row_batches(lengths, collate, recipe, shuffle)

    held_out = batches(store.validation, shuffle=False) if store.validation is not None else None
    return Prepared(
        processor=tokenizer,
        config=fitted_config(config, tokenizer, processor),
        train=held_out if evaluate_only and held_out else batches(store.train, shuffle=True),
        validation=held_out,
        summary=store.summary,
    )


def ended(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> Ragged:
    """The ids of each text, cut to leave room for the end, and the end."""
    end = tokenizer.eos_id
    if end is None:
        raise UsageError(
            "The tokenizer has no token that ends a text (</s>); name it as eos_token in its "
            "tokenizer_config.json, or choose another tokenizer."
        )
    rows = tokenizer.encode_batch(texts, markup=True)
    return Ragged([*ids[: length - 1], end] for ids in rows)


def sentinel_ids(tokenizer: Tokenizer) -> np.ndarray[Any, np.dtype[np.int64]]:
    """<extra_id_0>, <extra_id_1>, ...; UsageError if the vocabulary lacks them."""
    ids = [tokenizer.id(f"<extra_id_{i}>") for i in range(SENTINELS)]
    found = [i for i in ids if i is not None]
    if not found or tokenizer.eos_id is None:
        raise UsageError(
            "The tokenizer lacks <extra_id_0> and its like, which stand for what is left out; use "
            "T5's, or let one be trained."
        )
    return np.array(found, np.int64)


def batch(sources: Sequence[Ids], targets: Sequence[Ids], pad: int) -> Arrays:
    """Rows side by side; the labels say nothing where a target has ended."""
    lengths = np.array([len(source) for source in sources])
    ids = padded(sources, pad)
    mask = np.arange(ids.shape[1]) < lengths[:, None]
    return {
        "input_ids": ids,
        "attention_mask": mask.astype(np.int64),
        "labels": padded(targets, IGNORED),
    }


def row_batches(
    lengths: Ids,
    collate: Callable[[Ids, np.random.Generator], Arrays],
    recipe: Recipe,
    shuffle: bool,
) -> RowBatches:
    """Batches by the run's settings."""
    train = recipe.train
    return RowBatches(
        lengths, collate, batch_size=train.batch_size, seed=train.seed, shuffle=shuffle
    )


def fitted_config(config: T5Config, tokenizer: Tokenizer, processor: Tokenizer | None) -> T5Config:
    """From scratch, the config takes the tokenizer's vocabulary."""
    if processor is not None:
        return config
    return replace(
        config,
        vocab_size=tokenizer.vocab_size,
        pad_token_id=tokenizer.pad_id,
        decoder_start_token_id=tokenizer.pad_id,
        eos_token_id=tokenizer.eos_id if tokenizer.eos_id is not None else config.eos_token_id,
    )
