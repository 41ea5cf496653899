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
from cambrian_bert.config import BertConfig, RobertaConfig, two_labels
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
        sides = [wrapped(tokenizer, tokenizer.encode_batch(side), room + 2) for side in texts]
        summary = examples.summary
    else:
        store = prepare_text(data, processor, specials=specials(config))
        tokenizer, summary = store.tokenizer, store.summary
        streams = (store.train, store.validation)
        sides = [[] if s is None else Packed(s, room, ends_of(tokenizer)) for s in streams]
    rows = Rows.of(config, recipe, tokenizer, processor is None, evaluate_only)
    masking = Masking(tokenizer, data)

    def batches(side: Ragged | Packed, shuffle: bool) -> RowBatches:
        def collate(chosen: Ids, generator: np.random.Generator) -> Arrays:
            given = rows.inputs(side, chosen)
            masked, labels = masking.apply(given["input_ids"], given["attention_mask"], generator)
            return {**given, "input_ids": masked, "labels": labels}

        return rows.batches(side.lengths, collate, shuffle)

    return rows.prepared(sides, batches, summary)


def prepare_classes(
    config: BertConfig,
    recipe: Recipe,
    processor: Tokenizer | None = None,
    evaluate_only: bool = False,
) -> Prepared:
    """Texts with the number of their class: {"input_ids", "attention_mask", "labels" (B,)}."""
    data: ClassData = recipe.data
    examples = read_examples(data, labelled(data), evaluate_only)
    found = (label for _, label in chain(examples.train, examples.held_out))
    config = with_classes(config, found, evaluate_only)
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
    found = chain(*(tags for _, tags in chain(examples.train, examples.held_out)))
    config = with_classes(config, found, evaluate_only)
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

    def inputs(self, rows: Ragged | Packed, chosen: Ids) -> dict[str, Any]:
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
    """[CLS] ids [SEP], cut to `length`."""
    start, end = ends_of(tokenizer)
    return Ragged([start, *row[: length - 2], end] for row in rows)


def ends_of(tokenizer: Tokenizer) -> tuple[int, int]:
    """What a row begins and ends with; UsageError if the vocabulary has no such tokens."""
    start, end = tokenizer.cls_id, tokenizer.sep_id
    if start is None or end is None:
        raise UsageError(
            "The tokenizer has no token to begin or to end a row with ([CLS] and [SEP], or <s> "
            "and </s>); name them in its tokenizer_config.json, or choose another."
        )
    return start, end


def with_classes(config: BertConfig, found: Iterable[str], evaluate_only: bool) -> BertConfig:
    """The config with the data's classes, or tags, where it names none yet.

    CambrianError where it does, and the data holds others; UsageError for fewer than two.
    """
    names = sorted(set(found))
    if evaluate_only or config.id2label != two_labels():
        require_known(names, config.labels)
        return config
    if len(names) < 2:
        raise UsageError(f"All examples are '{names[0]}'; there is nothing to tell apart.")
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


class Packed:
    """Rows cut from a stream of tokens, `length` in each and less in the last, between `ends`; the
    stream stays on disk."""

    def __init__(self, stream: Any, length: int, ends: tuple[int, int]) -> None:
        self._stream, self._length, self._ends = stream, length, ends
        self.starts = np.arange(0, len(stream), length)
        self.lengths = np.minimum(length, len(stream) - self.starts) + 2

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: Any) -> Any:
        start, end = self._ends
        at = int(self.starts[row])
        return np.array([start, *self._stream[at : at + self._length], end], np.int64)
