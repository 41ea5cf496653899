"""Settings of the GPT family, under the names that its checkpoints use. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu", "relu"]


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """config.json of GPT-2 (Radford et al. 2019); the defaults are GPT-2 small, 124 M parameters.

    n_inner: width of the feed-forward layer, None for 4 * n_embd.
    resid_pdrop, embd_pdrop, attn_pdrop: dropout after each sublayer, of the embeddings, and of
        the attention weights.
    scale_attn_weights: divide attention scores by sqrt(head size).
    scale_attn_by_inverse_layer_idx: divide them by the layer's number as well, from 1.
    tie_word_embeddings: the output layer shares the token embedding's matrix.

    Raises ValueError where values cannot make a model.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: Activation = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | None = 50256
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.n_inner is not None and self.n_inner < 1:
            raise ValueError(f"n_inner must be at least 1 or left out, not {self.n_inner}")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        for name in ("layer_norm_epsilon", "initializer_range"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How text is continued; names as in generation_config.json, beside `seed` and `stop`.

    do_sample: draw the next token; otherwise take the likeliest (greedy).
    temperature, top_k, top_p: used where do_sample is set; top_k 0 and top_p 1 keep all tokens.
    repetition_penalty: above 1, makes tokens that occurred already less likely (Keskar 2019).
    eos_token_id: the token or tokens that end a text; None for the model's own.
    seed: same seed, same text.
    stop: strings that end a text; they are not part of it.

    Raises ValueError where values make no sense.
    """

    max_new_tokens: int = 128
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    eos_token_id: int | list[int] | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if not self.temperature > 0:
            raise ValueError(
                f"temperature must be positive, not {self.temperature}; "
                "for the likeliest text set do_sample=false"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all tokens) or more, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}")
        if not self.repetition_penalty > 0:
            raise ValueError(f"repetition_penalty must be positive, not {self.repetition_penalty}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be at least 0 and below 2**64, not {self.seed}")
        if not all(self.stop):
            raise ValueError("stop must not hold an empty string, which would end every text")
