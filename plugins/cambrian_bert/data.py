"""Text, labelled text, tagged words and pairs to batches for the encoder and its heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from cambrian.config import Recipe, TrainConfig
from cambrian.data import IGNORED, Arrays, Prepared
from cambrian.data.config import ClassData, ExampleData, MaskedData, PairData, TagData
from cambrian.data.records import (
    Example,
    labelled,
    paired,
    read_examples,
    read_lines,
    require_known,
    tagged,
)
from cambrian.data.rows import Ids, Ragged, RowBatches, padded
from cambrian.data.text import prepare_text
from cambrian.data.tokenizer import Specials, Tokenizer, fitted
from cambrian.data.vocabularies import BERT_ROLES, BERTWEET_ROLES
from cambrian.errors import UsageError
from cambrian_bert.config import BertConfig, RobertaConfig
from cambrian_bert.masking import Masking

BERT = Specials(roles=BERT_ROLES, single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1")
ROBERTA = Specials(roles=BERTWEET_ROLES, single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>")


def prepare_masked(
    config: BertConfig,
    recipe: Recipe,
    processor: Tokenizer | None = None,
    evaluate_only: bool = False,
) -> Prepared:
    """Rows of text with some of their tokens masked: {"input_ids", "attention_mask", "labels"}.

    Masks are drawn anew for every batch, held-out ones always alike.
    """
    data: MaskedData = recipe.data
    room = row_length(config, data.length) - 2
    sides: list[Any]
    if data.rows == "lines":
        examples = read_lines(data, evaluate_only)
        texts = [[text for text, _ in side] for side in (examples.train, examples.held_out)]
        tokenizer = processor or fit_tokenizer(config, data, texts[0])
        sides = [tokenizer.encode_batch(side) for side in texts]
        summary = examples.summary
    else:
        store = prepare_text(data, processor, specials=specials(config))
        tokenizer, summary = store.tokenizer, store.summary
        sides = [pieces(stream, room) for stream in (store.train, store.validation)]
    rows = Rows.of(config, recipe, tokenizer, processor is None, evaluate_only)
    masking = Masking(tokenizer, data)

    def batches(side: Ragged, shuffle: bool) -> RowBatches:
        def collate(chosen: Ids, generator: np.random.Generator) -> Arrays:
            given = rows.inputs(side, chosen)
            masked, labels = masking.apply(given["input_ids"], given["attention_mask"], generator)
            return {**given, "input_ids": masked, "labels": labels}

        return rows.batches(side.lengths, collate, shuffle)

    return rows.prepared([rows.wrap(side) for side in sides], batches, summary)


def prepare_classes(
    config: BertConfig,
    recipe: Recipe,
    processor: Tokenizer | None = None,
    evaluate_only: bool = False,
) -> Prepared:
    """Texts with the number of their class: {"input_ids", "attention_mask", "labels" (B,)}."""
    data: ClassData = recipe.data
    examples = read_examples(data, labelled(data), evaluate_only)
    config = with_classes(config, (label for _, label in examples.train), evaluate_only)
    require_known((label for _, label in examples.held_out), config.labels, "class")
    tokenizer = processor or fit_tokenizer(config, data, (text for text, _ in examples.train))
    rows = Rows.of(config, recipe, tokenizer, processor is None, evaluate_only)
    numbers = {label: number for number, label in enumerate(config.labels)}

    def batches(side: Sequence[Example], shuffle: bool) -> RowBatches:
        wrapped = rows.wrap(tokenizer.encode_batch([text for text, _ in side]))
        classes = np.array([numbers[label] for _, label in side], np.int64)

        def collate(chosen: Ids, generator: np.random.Generator) -> Arrays:
            return {**rows.inputs(wrapped, chosen), "labels": classes[chosen]}

        return rows.batches(wrapped.lengths, collate, shuffle)

    sides = [examples.train, examples.held_out]
    return rows.prepared(sides, batches, examples.summary, examples.held_out)


def prepare_tags(
    config: BertConfig,
    recipe: Recipe,
    processor: Tokenizer | None = None,
    evaluate_only: bool = False,
) -> Prepared:
    """Words with the numbers of their tags: {"input_ids", "attention_mask", "labels" (B, S)};
    the label is on a word's first token, all others are not counted."""
    data: TagData = recipe.data
    examples = read_examples(data, tagged(data), evaluate_only)
    config = with_classes(config, chain(*(tags for _, tags in examples.train)), evaluate_only)
    require_known(chain(*(tags for _, tags in examples.held_out)), config.labels, "tag")
    texts = (" ".join(words) for words, _ in examples.train)
    tokenizer = processor or fit_tokenizer(config, data, texts)
    rows = Rows.of(config, recipe, tokenizer, processor is None, evaluate_only)
    numbers = {label: number for number, label in enumerate(config.labels)}

    def batches(side: Sequence[Example], shuffle: bool) -> RowBatches:
        words = [encode_words(tokenizer, words) for words, _ in side]
        wrapped = rows.wrap([list(chain(*ids)) for ids in words])
        labels = Ragged(
            [
                IGNORED,
                *first_pieces(ids, [numbers[tag] for tag in tags])[: rows.length - 2],
                IGNORED,
            ]
            for ids, (_, tags) in zip(words, side, strict=True)
        )

        def collate(chosen: Ids, generator: np.random.Generator) -> Arrays:
            tags = padded([labels[n] for n in chosen], IGNORED)
            return {**rows.inputs(wrapped, chosen), "labels": tags}

        return rows.batches(wrapped.lengths, collate, shuffle)

    sides = [examples.train, examples.held_out]
    return rows.prepared(sides, batches, examples.summary, examples.held_out)


def prepare_pairs(
    config: BertConfig,
    recipe: Recipe,
    processor: Tokenizer | None = None,
    evaluate_only: bool = False,
) -> Prepared:
    """Two texts a row: {"input_ids", "attention_mask", "pair_input_ids", "pair_attention_mask"}."""
    data: PairData = recipe.data
    examples = read_examples(data, paired(data), evaluate_only)
    tokenizer = processor or fit_tokenizer(config, data, chain(*examples.train))
    rows = Rows.of(config, recipe, tokenizer, processor is None, evaluate_only)

    def batches(side: Sequence[Example], shuffle: bool) -> RowBatches:
        first, second = (
            rows.wrap(tokenizer.encode_batch([pair[i] for pair in side])) for i in (0, 1)
        )

        def collate(chosen: Ids, generator: np.random.Generator) -> Arrays:
            partners = {f"pair_{k}": v for k, v in rows.inputs(second, chosen).items()}
            return {**rows.inputs(first, chosen), **partners}

        return rows.batches(first.lengths, collate, shuffle)

    sides = [examples.train, examples.held_out]
    return rows.prepared(sides, batches, examples.summary, examples.held_out)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What all rows have in common: their tokenizer, how long they may be, the run's settings.
    `config` fits the tokenizer."""

    config: BertConfig
    tokenizer: Tokenizer
    train: TrainConfig
    length: int
    evaluate_only: bool

    @classmethod
    def of(
        cls,
        config: BertConfig,
        recipe: Recipe,
        tokenizer: Tokenizer,
        new: bool,
        evaluate_only: bool,
    ) -> Rows:
        """A `new` model takes the tokenizer's vocabulary; one that exists must have room for it
        (UsageError)."""
        if new:
            config = replace(config, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id)
        if tokenizer.vocab_size > config.vocab_size:
            raise UsageError(
                f"The tokenizer has {tokenizer.vocab_size} tokens but the model only "
                f"{config.vocab_size}; start from the tokenizer that the model was trained with."
            )
        return cls(
            config=config,
            tokenizer=tokenizer,
            train=recipe.train,
            length=row_length(config, recipe.data.length),
            evaluate_only=evaluate_only,
        )

    def wrap(self, rows: Iterable[Sequence[int] | Ids]) -> Ragged:
        """Rows with their ends."""
        return wrapped(self.tokenizer, rows, self.length)

    def inputs(self, rows: Ragged, chosen: Ids) -> dict[str, Any]:
        """input_ids and attention_mask of the chosen rows, padded on the right."""
        ids = padded([rows[n] for n in chosen], self.tokenizer.pad_id)
        mask = np.arange(ids.shape[1]) < rows.lengths[chosen][:, None]
        return {"input_ids": ids, "attention_mask": mask.astype(np.int64)}

    def batches(self, lengths: Ids, collate: Any, shuffle: bool) -> RowBatches:
        """Batches by the run's settings."""
        size, seed = self.train.batch_size, self.train.seed
        return RowBatches(lengths, collate, batch_size=size, seed=seed, shuffle=shuffle)

    def prepared(
        self,
        sides: Sequence[Any],
        batches: Callable[[Any, bool], RowBatches],
        summary: Mapping[str, Any],
        examples: Sequence[Example] = (),
    ) -> Prepared:
        """Batches of both sides, training and held out."""
        train, held_out = sides
        validation = batches(held_out, False) if len(held_out) else None
        only = validation if self.evaluate_only else None
        return Prepared(
            processor=self.tokenizer,
            config=self.config,
            train=only or batches(train, True),
            validation=validation,
            summary=summary,
            examples=examples,
        )


def specials(config: BertConfig) -> Specials:
    """The special tokens of a vocabulary that is trained for this variant."""
    return ROBERTA if isinstance(config, RobertaConfig) else BERT


def fit_tokenizer(
    config: BertConfig, data: MaskedData | ExampleData, texts: Iterable[str]
) -> Tokenizer:
    """The tokenizer that the data's settings name, trained on `texts` if need be."""
    return fitted(data.tokenizer, data.vocab_size, texts, specials(config))


def wrapped(tokenizer: Tokenizer, rows: Iterable[Sequence[int] | Ids], length: int) -> Ragged:
    """[CLS] ids [SEP], cut to `length`; UsageError if the vocabulary has no such tokens."""
    start, end = tokenizer.cls_id, tokenizer.sep_id
    if start is None or end is None:
        raise UsageError(
            "The tokenizer has no token to begin or to end a row with ([CLS] and [SEP], or <s> "
            "and </s>); name them in its tokenizer_config.json, or choose another."
        )
    return Ragged([start, *row[: length - 2], end] for row in rows)


def with_classes(config: BertConfig, found: Iterable[str], evaluate_only: bool) -> BertConfig:
    """The config with the data's classes, unless it knows them all already."""
    names = sorted(set(found))
    if evaluate_only or set(names) <= set(config.labels):
        return config
    return replace(config, id2label={str(i): name for i, name in enumerate(names)})


def row_length(config: BertConfig, length: int) -> int:
    """How many tokens a row may have, with its ends; UsageError if that is no room."""
    if length == 0:
        return config.max_length
    if not 3 <= length <= config.max_length:
        raise UsageError(
            f"data.length must be from 3 to what the model can read, {config.max_length}; it is "
            f"{length}."
        )
    return length


def encode_words(tokenizer: Tokenizer, words: Sequence[str]) -> list[list[int]]:
    """The ids of each word on its own; in byte-level BPE with the space before it."""
    space = " " if tokenizer.kind == "bpe" else ""
    unknown = [tokenizer.unk_id or 0]
    return [ids or unknown for ids in tokenizer.encode_batch([space + word for word in words])]


def first_pieces(words: Sequence[Sequence[int]], tags: Sequence[int]) -> list[int]:
    """A word's tag on its first token, nothing on the others."""
    pairs = zip(words, tags, strict=True)
    return list(chain(*([tag, *[IGNORED] * (len(ids) - 1)] for ids, tag in pairs)))


def pieces(stream: Any | None, length: int) -> list[Any]:
    """The stream of tokens, if there is one, in pieces of `length`."""
    return (
        [] if stream is None else [stream[at : at + length] for at in range(0, len(stream), length)]
    )
