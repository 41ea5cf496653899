"""Settings of the T5 family, under the names that its checkpoints use. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from msgspec import UNSET, UnsetType

from cambrian.data.config import PairData

FeedForward = Literal["relu", "gelu", "gated-gelu"]
SENTINELS = 100  # <extra_id_0> and so on, which stand for what is left out


@dataclass(frozen=True, kw_only=True)
class T5Config:
    """config.json of T5 (Raffel et al. 2020); the defaults are T5 1.0 small, 60 M parameters.

    d_kv: size of an attention head; num_heads * d_kv need not be d_model.
    num_decoder_layers: None for as many as the encoder's, num_layers.
    relative_attention_num_buckets, relative_attention_max_distance: how finely, and up to where,
        attention tells distances apart.
    feed_forward_proj: "relu" in T5 1.0, "gated-gelu" (Shazeer 2020) in T5 1.1 and Flan-T5.
    tie_word_embeddings: the output layer shares the token embedding's matrix, as in T5 1.0.
    scale_decoder_outputs: multiply what enters the output layer by d_model**-0.5; None for where
        the two are tied. Set to false it unties them.
    n_positions: tokens that data is cut to; the model itself has no limit.
    label_smoothing: share of the training target spread over the whole vocabulary.
    task_prefix: text that stands before every input, in training and in use.

    Raises ValueError where values cannot make a model.
    """

    vocab_size: int = 32128
    n_positions: int = 512
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int | None = None
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: FeedForward = "relu"
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool | UnsetType | None = None
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0
    label_smoothing: float = 0.0
    task_prefix: str = ""

    def __post_init__(self) -> None:
        self._settle_scale()
        counts = ("vocab_size", "n_positions", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.num_decoder_layers is not None and self.num_decoder_layers < 1:
            raise ValueError(
                f"num_decoder_layers must be at least 1 or left out, not {self.num_decoder_layers}"
            )
        buckets, distance = (
            self.relative_attention_num_buckets,
            self.relative_attention_max_distance,
        )
        if buckets < 4 or buckets % 2:
            raise ValueError(
                f"relative_attention_num_buckets must be even and at least 4, not {buckets}"
            )
        if distance <= buckets // 2:  # the decoder tells so many apart exactly
            raise ValueError(
                f"relative_attention_max_distance must be more than {buckets // 2}, half of "
                f"relative_attention_num_buckets, not {distance}"
            )
        for name in ("dropout_rate", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        for name in ("layer_norm_epsilon", "initializer_factor"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(
                    f"{name} must be one of {self.vocab_size} tokens, not {getattr(self, name)}"
                )

    def _settle_scale(self) -> None:
        # transformers before 5 scales where the two are tied; 5 always writes that they are and
        # adds scale_decoder_outputs, of which null would read as false. Both read right what says
        # false twice, or true, or leaves scale_decoder_outputs out, as UNSET does.
        if self.scale_decoder_outputs is None:
            object.__setattr__(self, "scale_decoder_outputs", UNSET)
        if self.scale_decoder_outputs is False:
            object.__setattr__(self, "tie_word_embeddings", False)

    @property
    def decoder_layers(self) -> int:
        return self.num_decoder_layers or self.num_layers

    @property
    def inner_size(self) -> int:
        """Width of all heads together."""
        return self.num_heads * self.d_kv

    @property
    def output_scale(self) -> float:
        """What the decoder's output is multiplied by before the output layer."""
        scaled = self.scale_decoder_outputs
        if isinstance(scaled, UnsetType) or scaled is None:
            scaled = self.tie_word_embeddings
        return self.d_model**-0.5 if scaled else 1.0


@dataclass(frozen=True, kw_only=True)
class T5Data(PairData):
    """What T5 learns from.

    objective: "pairs", or "spans": pretraining by span corruption (Raffel et al. 2020, section
        3.1.4) on raw text, given as for text; `text_key` is its field in JSONL.
    prefix: a text put before every source, as "translate English to German: "; <extra_id_0> and
        other special tokens that pairs spell out are those tokens.
    noise_density, mean_noise_span_length: how much of a text is corrupted, and in what pieces.
    """

    objective: Literal["pairs", "spans"] = "pairs"
    prefix: str = ""
    text_key: str = "text"
    noise_density: float = 0.15
    mean_noise_span_length: float = 3.0
