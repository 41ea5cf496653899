"""Text generation by any language model on any engine, in numpy alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cambrian.config import update
from cambrian.data import IGNORED, Arrays
from cambrian.errors import UsageError
from cambrian.generation import text
from cambrian.generation.config import GenerationConfig
from cambrian.generation.decoding import Decoding, LeftPadded, Scores, Tokens
from cambrian.generation.sampling import continuations, greedy, surprise
from cambrian.pipeline import Pipeline
from cambrian.runtime import Array
from cambrian.workload import GenerationSizes, Workload, random_ids

if TYPE_CHECKING:
    from cambrian.data.tokenizer import Tokenizer


class TextGeneration(Pipeline):
    """Continues texts, by a graph "decoder" that returns "logits".

    The config has the model's `vocab_size` and `eos_token_id`. A family whose decoder takes more
    than tokens and their mask, or has a longest text, says so by `decoding` and `room`.

    A result is {"prompt", "text", "tokens", "finish"}: the text that follows the prompt, without
    stop string; the tokens that were generated, the one that ended it included; and "stop" for
    the end of a text or "length" for the limit, max_new_tokens or the model's context; and, of a
    beam search, its "score". A row's result does not depend on the rows beside it.
    """

    options = GenerationConfig
    tolerated: ClassVar[Mapping[str, float]] = {"loss": 0.02}  # perplexity by 2 %
    processor: Tokenizer
    config: Any
    defaults: GenerationConfig

    @classmethod
    def room(cls, config: Any) -> int:
        """How many tokens the model can read; by default there is no end."""
        return sys.maxsize

    def decoding(self, prompts: Sequence[Sequence[int]], limits: Sequence[int]) -> Decoding:
        """The prompts, each about to grow by so many tokens at most."""
        return LeftPadded(self.session, prompts, limits, self.config.vocab_size)

    @classmethod
    def default_options(cls, config: Any) -> GenerationConfig:
        return GenerationConfig(eos_token_id=config.eos_token_id)

    @classmethod
    def default_sizes(cls, config: Any) -> GenerationSizes:
        half = max(1, min(128, cls.room(config) // 2))
        return GenerationSizes(prompt=half, new=half)

    def __call__(self, inputs: Sequence[Any], **options: Any) -> list[Any]:
        """Continue each text; UsageError for unknown options and prompts without room."""
        if not inputs:
            return []
        settings = update(self.defaults, options, "options")
        decoding = self._decoding(self._encode(inputs), settings)
        rows = text.generate(decoding, self.processor.decode, settings, self._ends(settings))
        return [
            {"prompt": prompt, **row.result()} for prompt, row in zip(inputs, rows, strict=True)
        ]

    def show(self, result: Mapping[str, Any]) -> str:
        """The prompt and what follows it."""
        return f"{result['prompt']}{result['text']}"

    def stream(self, item: Any, **options: Any) -> Iterator[str]:
        """The prompt, then the text that follows, in pieces of whole characters."""
        settings = update(self.defaults, options, "options")
        decoding = self._decoding(self._encode([item]), settings)
        yield item
        yield from text.stream(decoding, self.processor.decode, settings, self._ends(settings))

    def likelihood(self, batch: Arrays) -> tuple[float, int]:
        """Of the tokens of windows of text."""
        labels = batch["labels"].astype(np.int64)
        known = labels != IGNORED
        total = 0.0
        for place, scores in enumerate(self._scores(batch["input_ids"].astype(np.int64))):
            rows = known[:, place]
            total += surprise(scores[rows], labels[rows, place])
        return total, int(known.sum())

    def workload(self, sizes: GenerationSizes) -> Workload:
        """Greedy continuations of random tokens."""
        room = self.room(self.config) + 1 - sizes.prompt  # the last token is never read
        if sizes.new > room:
            raise UsageError(
                f"After prompt={sizes.prompt} the model has room for {max(room, 0)} tokens, not "
                f"for new={sizes.new}."
            )
        prompts = random_ids(self.config.vocab_size, sizes.batch, sizes.prompt).tolist()
        options = GenerationConfig(max_new_tokens=sizes.new)
        return greedy(lambda: self._decoding(prompts, options), sizes)

    def probe(self) -> Mapping[str, Array]:
        """Greedy continuations of three unequal prompts of random tokens: "tokens" (3, new)."""
        rng, limit = np.random.Generator(np.random.Philox(0)), self.room(self.config)
        lengths = [min(length, limit) for length in (2, 9, 5)]
        prompts = [rng.integers(self.config.vocab_size, size=n).tolist() for n in lengths]
        steps = continuations(self._decoding(prompts, GenerationConfig()), GenerationConfig())
        chosen = list(islice(steps, min(16, limit + 1 - max(lengths))))
        return {"tokens": np.stack(chosen, axis=1).astype(np.int64)}

    def _scores(self, ids: Tokens) -> Iterator[Scores]:
        """The logits (rows, vocabulary) at each place of windows (rows, length). Where an engine
        gives those of the last place alone (or none, which the first step then says), it reads
        token by token, as when it generates."""
        outputs = {port.name: port.shape for port in self.session.signatures["decoder"].outputs}
        if outputs.get("logits", (0, 1))[1] != 1:
            whole = self.decoding(ids.tolist(), [1] * len(ids))
            found, _ = self.session.run("decoder", whole.first())
            yield from found["logits"].astype(np.float32).swapaxes(0, 1)
            return
        decoding = self.decoding(ids[:, :1].tolist(), [1] * len(ids))
        yield decoding.start()
        for place in range(1, ids.shape[1]):
            yield decoding.step(ids[:, place])

    def _encode(self, texts: Sequence[Any]) -> list[list[int]]:
        for item in texts:
            if not isinstance(item, str):
                raise UsageError(f"A prompt is a text, not {type(item).__name__}.")
        start = [] if self.processor.eos_id is None else [self.processor.eos_id]
        prompts = [ids or start for ids in self.processor.encode_batch(texts)]
        for number, ids in enumerate(prompts):
            if not ids:
                raise UsageError(
                    f"Prompt {number + 1} is empty, and the tokenizer has no token to start a text "
                    "with; give at least one character."
                )
            if len(ids) > (room := self.room(self.config)):
                raise UsageError(
                    f"Prompt {number + 1} has {len(ids)} tokens, but the model reads at most "
                    f"{room}; shorten it."
                )
            if max(ids) >= self.config.vocab_size:
                raise UsageError(
                    f"The tokenizer gives token {max(ids)}, but the model knows only "
                    f"{self.config.vocab_size}; use the tokenizer it was trained with."
                )
        return prompts

    def _ends(self, options: GenerationConfig) -> frozenset[int]:
        return options.ends(self.config.eos_token_id)

    def _decoding(self, prompts: list[list[int]], options: GenerationConfig) -> Decoding:
        return self.decoding(prompts, text.limits(prompts, options, self.room(self.config)))
