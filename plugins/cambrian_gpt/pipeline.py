"""Text generation on any engine, in numpy alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cambrian.config import update
from cambrian.errors import UsageError
from cambrian.pipeline import Pipeline
from cambrian.runtime import Array
from cambrian_gpt.config import GenerationConfig, GPTConfig

if TYPE_CHECKING:
    from cambrian.data.tokenizer import Tokenizer

Scores = NDArray[np.floating[Any]]  # (batch, vocabulary): logits, -inf for what is ruled out
INCOMPLETE = "\ufffd"  # what the bytes of an unfinished character decode to


def penalise(scores: Scores, seen: NDArray[np.bool_], penalty: float) -> Scores:
    """Make `seen` tokens (batch, vocabulary) less likely: logits divided by the penalty, negative
    ones multiplied (Keskar et al. 2019, section 4.1, in transformers' form)."""
    return np.where(seen, np.where(scores < 0, scores * penalty, scores / penalty), scores)


def keep_top_k(scores: Scores, k: int) -> Scores:
    """Rule out all but the k best tokens of each row; those as good as the k-th stay."""
    if k >= scores.shape[-1]:
        return scores
    worst = np.partition(scores, -k, axis=-1)[:, -k, None]
    return np.where(scores < worst, -np.inf, scores)


def keep_top_p(scores: Scores, p: float) -> Scores:
    """Rule out all but the fewest best tokens that together have probability p (Holtzman 2020)."""
    ascending = np.sort(scores, axis=-1)
    tail = probabilities(ascending).cumsum(axis=-1)
    dropped = (tail[:, :-1] <= 1 - p).sum(axis=-1, keepdims=True)  # the best one always stays
    return np.where(scores < np.take_along_axis(ascending, dropped, axis=-1), -np.inf, scores)


def probabilities(scores: Scores) -> NDArray[np.float64]:
    """Softmax of each row, in float64."""
    weights = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def choose(
    scores: Scores, options: GenerationConfig, generators: Sequence[np.random.Generator]
) -> NDArray[np.int64]:
    """The next token of each row: the best or, with `do_sample`, one drawn by its generator."""
    if not options.do_sample:
        return scores.argmax(axis=-1)
    scores, tokens = scores / options.temperature, np.arange(scores.shape[-1])
    if options.top_k:
        scores = keep_top_k(scores, options.top_k)
        tokens = np.flatnonzero(np.isfinite(scores).any(axis=0))  # the rest is for the few left
        scores = scores[:, tokens]
    if options.top_p < 1:
        scores = keep_top_p(scores, options.top_p)
    cumulative = probabilities(scores).cumsum(axis=-1)
    drawn = np.array([generator.random() for generator in generators])
    # Scaled by the last sum, which rounding keeps from being exactly 1.
    return tokens[(cumulative <= drawn[:, None] * cumulative[:, -1:]).sum(axis=-1)]


class Continuation:
    """What follows one prompt, token by token, until `finish` says why it ended."""

    def __init__(
        self, tokenizer: Tokenizer, options: GenerationConfig, ends: frozenset[int], room: int
    ) -> None:
        self.tokens: list[int] = []
        self.finish = ""
        self._tokenizer = tokenizer
        self._stop = options.stop
        self._ends = ends
        self._limit = min(options.max_new_tokens, room)

    def append(self, token: int) -> None:
        self.tokens.append(token)
        if token in self._ends or (self._stop and self._cut(self._decoded()) is not None):
            self.finish = "stop"
        elif len(self.tokens) >= self._limit:
            self.finish = "length"

    @property
    def text(self) -> str:
        """The text so far, up to the first stop string."""
        decoded = self._decoded()
        return decoded[: self._cut(decoded)]

    @property
    def settled(self) -> str:
        """The part of `text` that no later token changes: no unfinished character, nor what may
        become a stop string."""
        if self.finish:
            return self.text
        text = self.text.removesuffix(INCOMPLETE)
        lengths = (n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n]))
        return text[: len(text) - max(lengths, default=0)]

    def _decoded(self) -> str:
        return self._tokenizer.decode(self.tokens)

    def _cut(self, decoded: str) -> int | None:
        found = (at for stop in self._stop if (at := decoded.find(stop)) >= 0)
        return min(found, default=None)


class TextGeneration(Pipeline):
    """Continues texts.

    A result is {"prompt", "text", "tokens", "finish"}: the text that follows the prompt, without
    stop string; the tokens that were generated, the one that ended it included; and "stop" for
    the end of a text or "length" for the limit, max_new_tokens or the model's context. A row's
    result does not depend on the rows beside it.
    """

    options = GenerationConfig
    processor: Tokenizer
    config: GPTConfig
    defaults: GenerationConfig

    @classmethod
    def default_options(cls, config: GPTConfig) -> GenerationConfig:
        return GenerationConfig(eos_token_id=config.eos_token_id)

    def __call__(self, inputs: Sequence[Any], **options: Any) -> list[Any]:
        """Continue each text; UsageError for unknown options and prompts without room."""
        if not inputs:
            return []
        settings = update(self.defaults, options, "options")
        prompts = self._encode(inputs)
        rows = [self._continuation(prompt, settings) for prompt in prompts]
        for chosen in self._tokens(prompts, settings):
            for row, token in zip(rows, chosen.tolist(), strict=True):
                if not row.finish:
                    row.append(token)
            if all(row.finish for row in rows):
                break
        return [
            {"prompt": prompt, "text": row.text, "tokens": row.tokens, "finish": row.finish}
            for prompt, row in zip(inputs, rows, strict=True)
        ]

    def show(self, result: Mapping[str, Any]) -> str:
        """The prompt and what follows it."""
        return f"{result['prompt']}{result['text']}"

    def stream(self, item: Any, **options: Any) -> Iterator[str]:
        """The prompt, then the text that follows, in pieces of whole characters."""
        settings = update(self.defaults, options, "options")
        prompts = self._encode([item])
        row, sent = self._continuation(prompts[0], settings), 0
        yield item
        for chosen in self._tokens(prompts, settings):
            row.append(int(chosen[0]))
            if piece := row.settled[sent:]:
                sent += len(piece)
                yield piece
            if row.finish:
                return

    def probe(self) -> Mapping[str, Array]:
        """Greedy continuations of three unequal prompts of random tokens: "tokens" (3, new)."""
        rng, limit = np.random.Generator(np.random.Philox(0)), self.config.n_positions
        lengths = [min(length, limit) for length in (2, 9, 5)]
        prompts = [rng.integers(self.config.vocab_size, size=n).tolist() for n in lengths]
        steps = self._tokens(prompts, GenerationConfig())
        chosen = list(islice(steps, min(16, limit + 1 - max(lengths))))
        return {"tokens": np.stack(chosen, axis=1).astype(np.int64)}

    def _encode(self, texts: Sequence[Any]) -> list[list[int]]:
        for text in texts:
            if not isinstance(text, str):
                raise UsageError(f"A prompt is a text, not {type(text).__name__}.")
        start = [] if self.processor.eos_id is None else [self.processor.eos_id]
        prompts = [ids or start for ids in self.processor.encode_batch(texts)]
        for number, ids in enumerate(prompts):
            if not ids:
                raise UsageError(
                    f"Prompt {number + 1} is empty, and the tokenizer has no token to start a text "
                    "with; give at least one character."
                )
            if len(ids) > self.config.n_positions:
                raise UsageError(
                    f"Prompt {number + 1} has {len(ids)} tokens, but the model reads at most "
                    f"{self.config.n_positions}; shorten it."
                )
            if max(ids) >= self.config.vocab_size:
                raise UsageError(
                    f"The tokenizer gives token {max(ids)}, but the model knows only "
                    f"{self.config.vocab_size}; use the tokenizer it was trained with."
                )
        return prompts

    def _continuation(self, prompt: Sequence[int], options: GenerationConfig) -> Continuation:
        ends = self.config.eos_token_id if options.eos_token_id is None else options.eos_token_id
        known = frozenset([ends] if isinstance(ends, int) else ends or [])
        room = self.config.n_positions + 1 - len(prompt)  # the last token is never read
        return Continuation(self.processor, options, known, room)

    def _tokens(
        self, prompts: Sequence[Sequence[int]], options: GenerationConfig
    ) -> Iterator[NDArray[np.int64]]:
        """Yield the next token of every row (batch,), endlessly."""
        batch, width = len(prompts), max(map(len, prompts))
        tokens, mask = np.zeros((2, batch, width), np.int64)
        for row, prompt in enumerate(prompts):
            tokens[row, width - len(prompt) :], mask[row, width - len(prompt) :] = prompt, 1
        seen = np.zeros((batch, self.config.vocab_size), np.bool_)
        for row, prompt in enumerate(prompts):
            seen[row, prompt] = True
        # A generator a row: what one draws does not depend on how many there are.
        generators = [
            np.random.Generator(np.random.Philox(key=[options.seed, row])) for row in range(batch)
        ]
        positions, state = (mask.cumsum(axis=-1) - 1).clip(min=0), None
        while True:
            inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
            outputs, state = self.session.run("decoder", inputs, state)
            scores = outputs["logits"][:, -1].astype(np.float32)
            if options.repetition_penalty != 1:
                scores = penalise(scores, seen, options.repetition_penalty)
            chosen = choose(scores, options, generators)
            yield chosen
            seen[np.arange(batch), chosen] = True
            tokens, mask = chosen[:, None], np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
            # Rows that have finished are carried along; they must not run out of positions.
            positions = (positions[:, -1:] + 1).clip(max=self.config.n_positions - 1)
