"""What the encoder's heads are for, on any engine and in numpy alone."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from cambrian.config import update
from cambrian.data import IGNORED, Arrays
from cambrian.data.rows import Ragged, padded
from cambrian.errors import UsageError
from cambrian.generation.sampling import probabilities, surprise
from cambrian.pipeline import Pipeline
from cambrian.progress import told
from cambrian.runtime import Array
from cambrian.workload import EncoderSizes, Workload, random_ids
from cambrian_bert.config import BertConfig
from cambrian_bert.data import encode_words, ends_of, wrapped

if TYPE_CHECKING:
    from cambrian.data.tokenizer import Tokenizer
    from cambrian.scores import Scores

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """batch_size: how many inputs the engine sees at once."""

    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}")


class EncoderPipeline(Pipeline):
    """What the heads' pipelines share: texts to rows of tokens, and rows through the engine.

    A row is [CLS], the tokens, [SEP] (<s> and </s> in RoBERTa); a text that is longer than the
    model can read is cut. What an input gives does not depend on the inputs beside it.
    """

    options = EncoderOptions
    processor: Tokenizer
    config: BertConfig

    def rows(self, tokens: Sequence[Sequence[int]]) -> Ragged:
        """The rows of the texts' tokens; UsageError for tokens that the model does not know."""
        rows = wrapped(self.processor, tokens, self.config.max_length)
        if len(rows.tokens) and (highest := rows.tokens.max()) >= self.config.vocab_size:
            raise UsageError(
                f"The tokenizer gives token {highest}, but the model knows only "
                f"{self.config.vocab_size}; use the tokenizer it was trained with."
            )
        return rows

    def compute(self, rows: Ragged, batch_size: int) -> Iterator[tuple[int, Floats]]:
        """Yield (number of the row, what the graph gives for it), rows alike in length first.

        Of an output for each token, (S, ...), what belongs to padding is left out.
        """
        [output] = self.session.signatures["model"].outputs
        order = np.argsort(rows.lengths, kind="stable")
        batches = np.split(order, range(batch_size, len(order), batch_size))
        for chosen in told(batches, "batches of texts", self.progress):
            ids = padded([rows[n] for n in chosen], self.config.pad_token_id)
            lengths = rows.lengths[chosen]
            mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
            found = self.forward(ids, mask)
            per_token = "sequence" in output.shape
            for number, length, values in zip(chosen, lengths, found, strict=True):
                yield int(number), np.asarray(values[:length] if per_token else values)

    def forward(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Floats:
        """What the graph gives for tokens (B, S) of which the mask hides the padding."""
        signature = self.session.signatures["model"]
        inputs: dict[str, Array] = {"input_ids": ids, "attention_mask": mask}
        if any(port.name == "token_type_ids" for port in signature.inputs):
            inputs["token_type_ids"] = np.zeros_like(ids)
        found, _ = self.session.run("model", inputs)
        [output] = signature.outputs
        return cast(Floats, found[output.name])

    @classmethod
    def default_sizes(cls, config: BertConfig) -> EncoderSizes:
        return EncoderSizes(length=min(128, config.max_length))

    def workload(self, sizes: EncoderSizes) -> Workload:
        """Texts of random tokens, all of one length, through the graph once."""
        if sizes.length > self.config.max_length:
            raise UsageError(
                f"The model reads {self.config.max_length} tokens, not length={sizes.length}."
            )
        ids = random_ids(self.config.vocab_size, sizes.batch, sizes.length)
        mask = np.ones_like(ids)
        return Workload(
            unit="texts", count=sizes.batch, run=lambda: iter([self.forward(ids, mask)])
        )

    def random_rows(self) -> Iterator[tuple[int, Floats]]:
        """What the graph gives for eight unequal rows of random tokens, by their number."""
        rng = np.random.Generator(np.random.Philox(0))
        lengths = np.linspace(1, min(24, self.config.max_length), 8).astype(int)
        rows = Ragged(rng.integers(self.config.vocab_size, size=n) for n in lengths)
        yield from sorted(self.compute(rows, batch_size=3), key=lambda pair: pair[0])

    def probe(self) -> Mapping[str, Array]:
        """The likeliest class, or token, for each of eight rows or for each of their tokens."""
        found = [values.argmax(axis=-1).reshape(-1) for _, values in self.random_rows()]
        return {"classes": np.concatenate(found).astype(np.int64)}


def texts(inputs: Sequence[Any]) -> list[str]:
    """The inputs; UsageError for one that is no text."""
    for item in inputs:
        if not isinstance(item, str):
            raise UsageError(f"An input is a text, not {type(item).__name__}.")
    return list(inputs)


@dataclass(frozen=True, kw_only=True)
class FillMaskOptions(EncoderOptions):
    """top_k: how many tokens are offered for each mask."""

    top_k: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {self.top_k}")


class FillMask(EncoderPipeline):
    """Finds the words behind the mask tokens of a text ("[MASK]" or "<mask>", as the vocabulary
    spells it).

    A result is {"input", "masks"}, with a list of {"token", "text", "score"} for each mask, the
    likeliest first: the token, the whole text with it (and with the likeliest at other masks), as
    the tokenizer spells it, and the token's probability.
    """

    options = FillMaskOptions
    tolerated: ClassVar[Mapping[str, float]] = {"loss": 0.02}

    def likelihood(self, batch: Arrays) -> tuple[float, int]:
        """Of the tokens that were masked."""
        labels = batch["labels"].astype(np.int64)
        known = labels != IGNORED
        ids, mask = (batch[name].astype(np.int64) for name in ("input_ids", "attention_mask"))
        return surprise(self.forward(ids, mask)[known], labels[known]), int(known.sum())

    def __call__(self, inputs: Sequence[Any], **options: Any) -> list[Any]:
        """Fill each text's masks; UsageError for a text without one, or cut before one."""
        settings = update(self.defaults, options, "options")
        tokens = self._tokens(texts(inputs))
        results: dict[int, Any] = {}
        for number, logits in self.compute(self.rows(tokens), settings.batch_size):
            ids = np.array([*ends_of(self.processor), *tokens[number]], np.int64)
            ids[1:] = np.roll(ids[1:], -1)  # the end behind the text, all of it
            places = np.flatnonzero(ids == self.processor.mask_id)
            masks = self._fill(ids, places, probabilities(logits[places]), settings.top_k)
            results[number] = {"input": inputs[number], "masks": masks}
        return [results[number] for number in range(len(inputs))]

    def _tokens(self, given: Sequence[str]) -> list[list[int]]:
        mask = self.processor.mask_id
        if mask is None:
            raise UsageError("The tokenizer has no mask token; use the one of a masked model.")
        tokens, room = self.processor.encode_batch(given, markup=True), self.config.max_length - 2
        for number, ids in enumerate(tokens):
            if mask not in ids:
                raise UsageError(
                    f"Text {number + 1} has nothing to fill: write {self.processor.token(mask)} "
                    "in place of the word."
                )
            if mask in ids[room:]:
                raise UsageError(
                    f"Text {number + 1} has {len(ids) + 2} tokens and a mask beyond the "
                    f"{self.config.max_length} that the model reads; shorten it."
                )
        return tokens

    def _fill(
        self, ids: NDArray[np.int64], places: NDArray[np.int64], scores: Floats, top_k: int
    ) -> list[list[dict[str, Any]]]:
        """What is offered for the masks at `places` of a row, which have these `scores`."""
        best = np.argsort(-scores, axis=-1, kind="stable")[:, :top_k]
        ids[places] = best[:, 0]
        masks: list[list[dict[str, Any]]] = []
        for place, candidates, found in zip(places, best, scores, strict=True):
            offered: list[dict[str, Any]] = []
            for token in candidates.tolist():
                ids[place] = token
                name = self.processor.decode([token]).strip() or self.processor.token(token)
                text = self.processor.decode(ids.tolist())
                offered.append({"token": name, "text": text, "score": float(found[token])})
            ids[place] = candidates[0]
            masks.append(offered)
        return masks


@dataclass(frozen=True, kw_only=True)
class ClassificationOptions(EncoderOptions):
    """top_k: how many classes are listed with their probabilities, 0 for all."""

    top_k: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all classes) or more, not {self.top_k}")


class TextClassification(EncoderPipeline):
    """Finds a text's class.

    A result is {"label", "score", "scores"}: the likeliest class, its probability, and those of
    the `top_k` likeliest, in order. What is beyond the model's length in a text is not read.
    """

    options = ClassificationOptions
    tolerated: ClassVar[Mapping[str, float]] = {"accuracy": -0.01}

    def __call__(self, inputs: Sequence[Any], **options: Any) -> list[Any]:
        """Classify each text; UsageError for one that is no text."""
        settings = update(self.defaults, options, "options")
        rows = self.rows(self.processor.encode_batch(texts(inputs)))
        results: dict[int, Any] = {}
        for number, logits in self.compute(rows, settings.batch_size):
            scores = probabilities(logits)
            order = np.argsort(-scores, kind="stable")[: settings.top_k or None]
            named = {self.config.labels[i]: float(scores[i]) for i in order}
            label = self.config.labels[order[0]]
            results[number] = {"label": label, "score": float(scores[order[0]]), "scores": named}
        return [results[number] for number in range(len(inputs))]

    def score(self, examples: Sequence[tuple[Any, Any]], **options: Any) -> Scores:
        """Accuracy, macro F1 and confusion over (text, class)."""
        from cambrian.scores import classification

        results = self([text for text, _ in examples], **options)
        expected = [label for _, label in examples]
        return classification(self.config.labels, expected, [r["label"] for r in results])


class TokenClassification(EncoderPipeline):
    """Tags the words of a text, which blanks separate, or of a list of words.

    A result is {"words": [{"word", "start", "end", "label", "score"}]}: start and end count the
    text's characters (of a list, those of its words joined by blanks), the label is that of the
    word's first token. Words beyond the model's length are left out.
    """

    tolerated: ClassVar[Mapping[str, float]] = {"accuracy": -0.01}

    def __call__(self, inputs: Sequence[Any], **options: Any) -> list[Any]:
        """Tag each input's words; UsageError for one that is neither text nor list of words."""
        settings = update(self.defaults, options, "options")
        words = [*map(placed, inputs)]
        pieces = [encode_words(self.processor, [word for word, _ in row]) for row in words]
        rows = self.rows([list(chain.from_iterable(row)) for row in pieces])
        results: dict[int, Any] = {}
        for number, logits in self.compute(rows, settings.batch_size):
            starts = np.cumsum([1, *map(len, pieces[number])])[:-1]  # after [CLS]
            starts = starts[starts < len(logits) - 1]
            tagged = zip(words[number], probabilities(logits[starts]), strict=False)
            results[number] = {"words": [self._tagged(word, scores) for word, scores in tagged]}
        return [results[number] for number in range(len(inputs))]

    def _tagged(self, placed: tuple[str, int], scores: Floats) -> dict[str, Any]:
        best, (word, start) = int(scores.argmax()), placed
        where = {"word": word, "start": start, "end": start + len(word)}
        return {**where, "label": self.config.labels[best], "score": float(scores[best])}

    def score(self, examples: Sequence[tuple[Any, Any]], **options: Any) -> Scores:
        """Accuracy, macro F1 and confusion over (words, their tags), of all the words read."""
        from cambrian.scores import classification

        results = self([words for words, _ in examples], **options)
        expected: list[str] = []
        predicted: list[str] = []
        for result, (_, tags) in zip(results, examples, strict=True):
            found = [word["label"] for word in result["words"]]
            expected += tags[: len(found)]
            predicted += found
        return classification(self.config.labels, expected, predicted)


def placed(item: Any) -> list[tuple[str, int]]:
    """The words of a text, or of a list of them, and where each starts."""
    if isinstance(item, str):
        return [(word[0], word.start()) for word in re.finditer(r"\S+", item)]
    if not isinstance(item, list | tuple):
        raise UsageError(f"An input is a text or a list of words, not {type(item).__name__}.")
    words: list[Any] = [*item]
    for word in words:
        if not isinstance(word, str):
            raise UsageError(f"{word!r} is no word; a word is a text.")
    starts = accumulate((len(word) + 1 for word in words), initial=0)
    return list(zip(words, starts, strict=False))


class SentenceEmbedding(EncoderPipeline):
    """Turns texts into vectors of length 1, whose products say how alike the texts are.

    A result is {"input", "embedding"}. What is beyond the model's length in a text is not read.
    """

    def __call__(self, inputs: Sequence[Any], **options: Any) -> list[Any]:
        """Embed each text; UsageError for one that is no text."""
        settings = update(self.defaults, options, "options")
        rows = self.rows(self.processor.encode_batch(texts(inputs)))
        vectors = dict(self.compute(rows, settings.batch_size))
        return [
            {"input": text, "embedding": vectors[number].astype(np.float32).tolist()}
            for number, text in enumerate(inputs)
        ]

    def encode(self, results: Sequence[Any], suffix: str) -> bytes:
        """Also .npy: float32 (results, hidden size)."""
        if suffix != ".npy":
            return super().encode(results, suffix)
        vectors = np.array([result["embedding"] for result in results], np.float32)
        file = io.BytesIO()
        np.save(file, vectors.reshape(len(results), self.config.hidden_size), allow_pickle=False)
        return file.getvalue()

    def probe(self) -> Mapping[str, Array]:
        """Which of seven others is nearest to each of eight rows: "nearest" (8,)."""
        vectors = np.stack([vector for _, vector in self.random_rows()]).astype(np.float64)
        cosines = vectors @ vectors.T
        np.fill_diagonal(cosines, -np.inf)
        return {"nearest": cosines.argmax(axis=-1).astype(np.int64)}

    def score(self, examples: Sequence[tuple[Any, Any]], **options: Any) -> Scores:
        """How often a text's nearest partner, among those of all examples, is its own."""
        from cambrian.scores import Scores

        if not examples:
            raise UsageError("There are no examples to score.")
        sides = [[example[side] for example in examples] for side in (0, 1)]
        first, second = (
            np.array([result["embedding"] for result in self(side, **options)], np.float32)
            for side in sides
        )
        partners = sides[1]
        right = 0
        for start in range(0, len(first), 1024):  # a table of all by all may not fit in memory
            found = (first[start : start + 1024] @ second.T).argmax(axis=-1)
            right += sum(
                partners[row + start] == partners[nearest] for row, nearest in enumerate(found)
            )
        return Scores({"retrieval_accuracy": right / len(examples)})
