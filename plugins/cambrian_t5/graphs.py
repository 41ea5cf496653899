"""What of T5 is deployed: the encoder, and one step of decoding, of which the first is another.

The encoder also gives every layer's cross-attention keys and values, which the decoder then finds
in the state: they are computed once for a text, not once for a token. Names are those of Optimum's
exports. Shapes as in `model`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from cambrian.artifact import Port, Signature
from cambrian.model import Case, Graph
from cambrian.runtime import Array
from cambrian_t5.config import T5Config

if TYPE_CHECKING:
    from cambrian_t5.model import T5

Call = tuple[str, dict[str, Array]]


class EncoderGraph(nn.Module):
    """Source to hidden states (B, E, M), then each layer's cross key and value (B, H, E, D)."""

    def __init__(self, model: T5) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        hidden = self.model.encoder(self.model.shared(input_ids), attention_mask)
        caches = self.model.decoder.sources(hidden)
        hidden = hidden.to(self.model.lm_head.weight.dtype)
        return hidden, *itertools.chain.from_iterable(caches)


class DecoderGraph(nn.Module):
    """Target tokens to logits (B, S, V), then each layer's own key and value (B, H, T, D)."""

    def __init__(self, model: T5) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, encoder_attention_mask: Tensor, **past: Tensor
    ) -> tuple[Tensor, ...]:
        """`past` is past_key_values.{layer}.decoder.key and .value (B, H, P, D), P >= 0, and
        past_key_values.{layer}.encoder.key and .value (B, H, E, D)."""

        def caches(kind: str) -> list[tuple[Tensor, Tensor]]:
            name = f"past_key_values.{{}}.{kind}.{{}}".format
            layers = range(self.model.config.decoder_layers)
            return [(past[name(i, "key")], past[name(i, "value")]) for i in layers]

        hidden, presents = self.model.decoder(
            self.model.shared(input_ids),
            encoder_attention_mask,
            caches("encoder"),
            caches("decoder"),
        )
        return self.model.head(hidden), *itertools.chain.from_iterable(presents)


def graphs(model: T5) -> Sequence[Graph]:
    """The encoder and the decoder with their signatures, in the model's precision."""
    config = model.config
    dtype = str(model.lm_head.weight.dtype).removeprefix("torch.")

    def cache(prefix: str, kind: str, length: str) -> tuple[Port, ...]:
        shape = ("batch", config.num_heads, length, config.d_kv)
        return tuple(Port(name, dtype, shape) for name in _names(prefix, kind, config))

    def state(kind: str) -> dict[str, str]:
        return dict(
            zip(
                _names("present", kind, config),
                _names("past_key_values", kind, config),
                strict=True,
            )
        )

    encoder = Signature(
        inputs=(
            Port("input_ids", "int64", ("batch", "source")),
            Port("attention_mask", "int64", ("batch", "source")),
        ),
        outputs=(
            Port("last_hidden_state", dtype, ("batch", "source", config.d_model)),
            *cache("present", "encoder", "source"),
        ),
        state=state("encoder"),
    )
    decoder = Signature(
        inputs=(
            Port("input_ids", "int64", ("batch", "sequence")),
            Port("encoder_attention_mask", "int64", ("batch", "source")),
            *cache("past_key_values", "decoder", "past"),
            *cache("past_key_values", "encoder", "source"),
        ),
        outputs=(
            Port("logits", dtype, ("batch", "sequence", config.vocab_size)),
            *cache("present", "decoder", "past + sequence"),
        ),
        state=state("decoder"),
    )
    return [
        Graph(name="encoder", module=EncoderGraph(model), signature=encoder),
        Graph(name="decoder", module=DecoderGraph(model), signature=decoder, last={"logits": 1}),
    ]


def _names(prefix: str, kind: str, config: T5Config) -> list[str]:
    return [
        f"{prefix}.{layer}.{kind}.{part}"
        for layer in range(config.decoder_layers)
        for part in ("key", "value")
    ]


def cases(config: T5Config) -> Iterator[Case]:
    """Batches of 1, 2, 5; sources of 1, 2, 17 and more tokens than the bias tells apart; padded or
    not; decoded at once, or several tokens and then two single ones."""
    far = config.relative_attention_max_distance + 9
    targets = ((1,), (5, 1, 1))
    for batch, source in itertools.product((1, 2, 5), (1, 2, 17, far)):
        for padded in (False, True) if batch > 1 and source > 1 else (False,):
            for widths in (*targets, (far, 1)) if (batch, source) == (2, 17) else targets:
                name = f"batch={batch} source={source} target={'+'.join(map(str, widths))}"
                calls = _calls(config, batch, source, widths, padded)
                yield Case(name + " padded" * padded, tuple(calls))


def _calls(
    config: T5Config, batch: int, source: int, widths: tuple[int, ...], padded: bool
) -> Iterator[Call]:
    """The encoder's call and the decoder's successive ones with random tokens."""
    rng = np.random.Generator(np.random.Philox(0))
    tokens = rng.integers(config.vocab_size, size=(batch, source))
    lengths = np.linspace(source, 1, batch).astype(np.int64) if padded else np.full(batch, source)
    mask = (np.arange(source) < lengths[:, None]).astype(np.int64)
    yield "encoder", {"input_ids": tokens, "attention_mask": mask}
    target = rng.integers(config.vocab_size, size=(batch, sum(widths)))
    for end, width in zip(np.cumsum(widths), widths, strict=True):
        given = target[:, end - width : end]
        yield "decoder", {"input_ids": given, "encoder_attention_mask": mask}
