"""Text to text on any engine, in numpy alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cambrian.config import update
from cambrian.data import IGNORED, Arrays
from cambrian.data.rows import padded
from cambrian.errors import UsageError
from cambrian.generation import text
from cambrian.generation.beams import beam_search
from cambrian.generation.config import GenerationConfig
from cambrian.generation.decoding import Decoding, Tokens
from cambrian.generation.sampling import continuations, greedy, surprise
from cambrian.pipeline import Pipeline
from cambrian.runtime import Array, Session
from cambrian.workload import GenerationSizes, Workload, random_ids
from cambrian_t5.config import SENTINELS, T5Config

if TYPE_CHECKING:
    from cambrian.data.tokenizer import Tokenizer
    from cambrian.scores import Scores

ROWS = 32  # scored at once


class T5Decoding(Decoding):
    """The encoder runs once, at the start; sources of unequal length are padded on the right."""

    def __init__(
        self,
        session: Session,
        sources: Sequence[Sequence[int]],
        limits: Sequence[int],
        config: T5Config,
        start: int | None = None,
    ) -> None:
        ids = padded(sources, config.pad_token_id)
        lengths = np.array([len(source) for source in sources])
        self._mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
        _, state = session.run("encoder", {"input_ids": ids, "attention_mask": self._mask})
        first = config.decoder_start_token_id if start is None else start
        super().__init__(session, [[first]] * len(sources), limits, config.vocab_size, state)

    def first(self) -> Mapping[str, Array]:
        return self.following(np.array(self.prompts, np.int64))

    def following(self, tokens: Tokens) -> Mapping[str, Array]:
        return {"input_ids": tokens, "encoder_attention_mask": self._mask}

    def select(self, rows: Tokens) -> None:
        self._mask = self._mask[rows]


class Text2Text(Pipeline):
    """Turns texts into others: translations, answers, what a gap held.

    An input is a text; the config's `task_prefix` is put before it, and <extra_id_0> in it is a
    gap (all special tokens that it spells out are those tokens). A result is {"input", "text",
    "tokens", "finish"}: the tokens include the one that ended the text; "finish" is "stop" for
    that, "length" for max_new_tokens; and a beam search adds its "score". A row's result does not
    depend on the rows beside it.
    """

    options = GenerationConfig
    tolerated: ClassVar[Mapping[str, float]] = {"bleu": -0.5}
    processor: Tokenizer
    config: T5Config
    defaults: GenerationConfig

    @classmethod
    def default_options(cls, config: T5Config) -> GenerationConfig:
        return GenerationConfig(
            eos_token_id=config.eos_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
        )

    @classmethod
    def default_sizes(cls, config: T5Config) -> GenerationSizes:
        length = min(128, config.n_positions)
        return GenerationSizes(prompt=length, new=length)

    def __call__(self, inputs: Sequence[Any], **options: Any) -> list[Any]:
        """Generate for each text; UsageError for unknown options and for what is no text."""
        if not inputs:
            return []
        settings = update(self.defaults, options, "options")
        decoding = self._decoding(self._encode(inputs), settings)
        rows = text.generate(decoding, self._decode, settings, self._ends(settings))
        return [{"input": item, **row.result()} for item, row in zip(inputs, rows, strict=True)]

    def show(self, result: Mapping[str, Any]) -> str:
        return result["text"]

    def stream(self, item: Any, **options: Any) -> Iterator[str]:
        """The text in pieces of whole characters."""
        settings = update(self.defaults, options, "options")
        decoding = self._decoding(self._encode([item]), settings)
        yield from text.stream(decoding, self._decode, settings, self._ends(settings))

    def likelihood(self, batch: Arrays) -> tuple[float, int]:
        """Of the targets' tokens, given their sources. Where an engine gives the logits of the last
        token alone, it reads token by token, as when it generates."""
        labels, mask = (batch[name].astype(np.int64) for name in ("labels", "attention_mask"))
        source = {"input_ids": batch["input_ids"].astype(np.int64), "attention_mask": mask}
        _, state = self.session.run("encoder", source)
        known = labels != IGNORED
        start = np.full_like(labels[:, :1], self.config.decoder_start_token_id)
        before = np.where(known, labels, self.config.pad_token_id)[:, :-1]
        given = np.concatenate((start, before), axis=1)
        outputs = {port.name: port.shape for port in self.session.signatures["decoder"].outputs}
        width = 1 if outputs["logits"][1] == 1 else given.shape[1]
        total = 0.0
        for place in range(0, given.shape[1], width):
            here = np.s_[:, place : place + width]
            inputs = {"input_ids": given[here], "encoder_attention_mask": mask}
            found, state = self.session.run("decoder", inputs, state)
            logits = found["logits"].astype(np.float32)
            total += surprise(logits[known[here]], labels[here][known[here]])
        return total, int(known.sum())

    def workload(self, sizes: GenerationSizes) -> Workload:
        """What follows sources of random tokens; the first token waits for the encoder, too."""
        sources = random_ids(self.config.vocab_size, sizes.batch, sizes.prompt).tolist()
        options = GenerationConfig(max_new_tokens=sizes.new)
        return greedy(lambda: self._decoding(sources, options), sizes)

    def probe(self) -> Mapping[str, Array]:
        """What follows three unequal sources of random tokens, never ending: the likeliest token
        each time, "greedy" (3, 16), and by three beams, "beams" (3, 16)."""
        rng, limits = np.random.Generator(np.random.Philox(0)), [16] * 3
        sources = [rng.integers(self.config.vocab_size, size=n).tolist() for n in (2, 9, 5)]
        greedy, beams = GenerationConfig(), GenerationConfig(num_beams=3)
        steps = continuations(T5Decoding(self.session, sources, limits, self.config), greedy)
        chosen = np.stack(list(islice(steps, 16)), axis=1).astype(np.int64)
        decoding = T5Decoding(self.session, sources, limits, self.config)
        found = [beam.tokens for beam in beam_search(decoding, beams, frozenset())]
        return {"greedy": chosen, "beams": np.array(found, np.int64)}

    def score(self, examples: Sequence[tuple[Any, Any]], **options: Any) -> Scores:
        """BLEU and chrF of the whole, from 0 to 100; the mean ROUGE-L (F1) and the share that is
        exactly what was expected, from 0 to 1."""
        from cambrian_t5.metrics import compare

        if not examples:
            raise UsageError("There are no examples to score.")
        # Rows of like length go together: less padding, and none waits long for the others.
        order = sorted(range(len(examples)), key=lambda n: len(str(examples[n][0])))
        found = [""] * len(examples)
        for start in range(0, len(order), ROWS):
            self.progress("texts", start, len(order))
            chosen = order[start : start + ROWS]
            results = self([examples[n][0] for n in chosen], **options)
            for n, result in zip(chosen, results, strict=True):
                found[n] = result["text"]
        self.progress("texts", len(order), len(order))
        return compare(found, [expected for _, expected in examples])

    def _encode(self, texts: Sequence[Any]) -> list[list[int]]:
        for item in texts:
            if not isinstance(item, str):
                raise UsageError(f"An input is a text, not {type(item).__name__}.")
        prefixed = [self.config.task_prefix + item for item in texts]
        rows = self.processor.encode_batch(prefixed, markup=True)
        if (largest := max(max(ids, default=0) for ids in rows)) >= self.config.vocab_size:
            raise UsageError(
                f"The tokenizer gives token {largest}, but the model knows only "
                f"{self.config.vocab_size}; use the tokenizer it was trained with."
            )
        return [[*ids, self.config.eos_token_id] for ids in rows]

    def _decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, in which sentinels are spelt out."""
        parts: list[str] = []
        for mark, group in groupby(ids, self._sentinels.__contains__):
            if mark:
                parts += map(self.processor.token, group)
            else:
                parts.append(self.processor.decode(list(group)))
        written = parts[0] if parts else ""
        for part in map(str.strip, parts[1:]):  # so that more tokens never change what is written
            if part:
                written += part if not written or written[-1].isspace() else f" {part}"
        return written

    @cached_property
    def _sentinels(self) -> frozenset[int | None]:
        return frozenset(self.processor.id(f"<extra_id_{n}>") for n in range(SENTINELS)) - {None}

    def _ends(self, options: GenerationConfig) -> frozenset[int]:
        return options.ends(self.config.eos_token_id)

    def _decoding(self, sources: Sequence[Sequence[int]], options: GenerationConfig) -> T5Decoding:
        start, known = options.decoder_start_token_id, self.config.vocab_size
        if start is not None and not 0 <= start < known:
            raise UsageError(
                f"decoder_start_token_id must be one of the model's {known} tokens, not {start}."
            )
        limits = [options.max_new_tokens] * len(sources)
        return T5Decoding(self.session, sources, limits, self.config, start)
