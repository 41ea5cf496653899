"""The encoder of BERT (Devlin et al. 2019) and RoBERTa (Liu et al. 2019).

Shapes: B batch, S sequence, H heads, D head size, E = H * D hidden size. Submodules carry the
reference checkpoints' names; what RoBERTa does otherwise is in its config.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cambrian.layers import Dropout, attention
from cambrian_bert.config import BertConfig

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


class SelfAttention(nn.Module):
    """Every token looks at every token that is no padding."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, S, E); mask (B, 1, S, S), added to the scores."""
        query, key, value = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        rate, training = self.dropout, self.training
        y = attention(query, key, value, mask=mask, dropout=rate, training=training)
        return y.transpose(1, 2).flatten(2)


class Output(nn.Module):
    """The end of a sublayer: projection, dropout, and normalisation of the sum with its input."""

    def __init__(self, config: BertConfig, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class Attention(nn.Module):
    """The attention sublayer."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = Output(config, config.hidden_size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.output(self.self(x, mask), x)


class Dense(nn.Module):
    """A projection, alone under its name."""

    def __init__(self, config: BertConfig, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)


class Layer(nn.Module):
    """Attention and feed-forward, the sum with the input normalised after each."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Dense(config, config.intermediate_size)
        self.output = Output(config, config.intermediate_size)
        self.act = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention(x, mask)
        return self.output(self.act(self.intermediate(x)), x)


class Embeddings(nn.Module):
    """The sum of a token's, its position's and its segment's embeddings, normalised."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.offset = config.position_offset

    def forward(self, input_ids: Tensor, attention_mask: Tensor, types: Tensor | None) -> Tensor:
        segments = self.token_type_embeddings
        x = self.word_embeddings(input_ids) + self.position_embeddings(
            self._positions(attention_mask)
        )
        x = x + (segments.weight[0] if types is None else segments(types))
        return self.dropout(self.LayerNorm(x))

    def _positions(self, mask: Tensor) -> Tensor:
        """BERT counts all tokens; RoBERTa those that are no padding, from its offset."""
        if not self.offset:
            return torch.arange(mask.shape[1], device=mask.device)
        return mask.cumsum(-1) * mask + (self.offset - 1)


class Stack(nn.Module):
    """The layers, one after the other."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layer:
            x = layer(x, mask)
        return x


class Encoder(nn.Module):
    """Token ids to hidden states: transformers' BertModel or RobertaModel, name for name.

    The pooler, which it may have, is for its heads to call.
    """

    def __init__(self, config: BertConfig, pooler: bool) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Stack(config)
        self.pooler = Dense(config, config.hidden_size) if pooler else None

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None
    ) -> Tensor:
        """Hidden states (B, S, E); no mask means that there is no padding."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        x = self.embeddings(input_ids, attention_mask, token_type_ids)
        return self.encoder(x, additive(attention_mask, x.dtype))


def additive(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Attention mask (B, S) of 0 and 1 to one that is added to scores (B, 1, S, S).

    What is hidden gets a large negative number, not minus infinity: the softmax of a row that is
    all padding must not be NaN.
    """
    hidden = torch.finfo(dtype).min / 2  # halved, so that adding a score cannot overflow
    visible = attention_mask.bool()[:, None, None, :]
    mask = torch.zeros((), dtype=dtype, device=visible.device).where(visible, hidden)
    return mask.expand(-1, -1, attention_mask.shape[1], -1)
