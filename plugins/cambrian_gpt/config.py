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
