"""T5 (Raffel et al. 2020): an encoder and a decoder that know positions by relative distance.

Shapes: B batch, E source tokens, S target tokens (new), P past (cached target tokens), T = P + S,
H heads, D head size, M model width, V vocabulary; Q and K are an attention's queries and keys.
Submodules carry the reference checkpoint's names. T5 1.0 and 1.1 differ in the feed-forward
sublayer, in the tied output layer and in its scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cambrian.data import IGNORED
from cambrian.layers import Dropout, cross_entropy
from cambrian.model import Batch, Case, Graph, Losses, Model, Update
from cambrian_t5 import graphs
from cambrian_t5.attention import Attention, Cache, buckets, hide
from cambrian_t5.config import T5Config


class RMSNorm(nn.Module):
    """Scales to a root mean square of 1, without mean or bias (Zhang and Sennrich 2019)."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.d_model))
        self.epsilon = config.layer_norm_epsilon

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return self.weight * wide.to(self.weight.dtype)


class SelfAttentionLayer(nn.Module):
    """Self-attention over the past and x, on normalised input, added to the residual stream."""

    def __init__(self, config: T5Config, relative: bool) -> None:
        super().__init__()
        self.SelfAttention = Attention(config, relative)
        self.layer_norm = RMSNorm(config)
        self.dropout = Dropout(config.dropout_rate)

    def forward(self, x: Tensor, bias: Tensor, past: Cache | None) -> tuple[Tensor, Cache]:
        normed = self.layer_norm(x)
        key, value = self.SelfAttention.cache(normed)
        if past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        y = self.SelfAttention(normed, (key, value), bias)
        return x + self.dropout(y), (key, value)


class CrossAttentionLayer(nn.Module):
    """Attention to the encoder's keys and values, likewise."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.EncDecAttention = Attention(config)
        self.layer_norm = RMSNorm(config)
        self.dropout = Dropout(config.dropout_rate)

    def forward(self, x: Tensor, source: Cache, mask: Tensor) -> Tensor:
        return x + self.dropout(self.EncDecAttention(self.layer_norm(x), source, mask))


class Dense(nn.Module):
    """The feed-forward network of T5 1.0."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.dropout = Dropout(config.dropout_rate)
        self.act = F.relu if config.feed_forward_proj == "relu" else F.gelu

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(self.act(self.wi(x.to(self.wi.weight.dtype))))
        return self.wo(y.to(self.wo.weight.dtype))


class GatedDense(nn.Module):
    """The feed-forward network of T5 1.1: one projection opens and shuts the other (Shazeer 2020,
    "GLU Variants Improve Transformer")."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.dropout = Dropout(config.dropout_rate)
        self.act = partial(F.gelu, approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.wi_0.weight.dtype)
        y = self.dropout(self.act(self.wi_0(x)) * self.wi_1(x))
        return self.wo(y.to(self.wo.weight.dtype))


class FeedForwardLayer(nn.Module):
    """The feed-forward network, likewise."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        gated = config.feed_forward_proj.startswith("gated")
        self.DenseReluDense = (GatedDense if gated else Dense)(config)
        self.layer_norm = RMSNorm(config)
        self.dropout = Dropout(config.dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.DenseReluDense(self.layer_norm(x)))


class Block(nn.Module):
    """Self-attention, in the decoder attention to the source, and feed-forward."""

    def __init__(self, config: T5Config, decoder: bool, relative: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [SelfAttentionLayer(config, relative)]
        if decoder:
            layers.append(CrossAttentionLayer(config))
        self.layer = nn.ModuleList([*layers, FeedForwardLayer(config)])

    @property
    def own(self) -> Attention:
        return cast(SelfAttentionLayer, self.layer[0]).SelfAttention

    @property
    def cross(self) -> Attention:
        return cast(CrossAttentionLayer, self.layer[1]).EncDecAttention

    def forward(
        self,
        x: Tensor,
        bias: Tensor,
        past: Cache | None = None,
        source: Cache | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Cache]:
        x, present = self.layer[0](x, bias, past)
        if source is not None:
            x = self.layer[1](x, source, mask)
        return self.layer[-1](x), present


class Stack(nn.Module):
    """What encoder and decoder have in common: blocks, and one relative bias for all of them."""

    decoder: ClassVar[bool]
    buckets: Tensor

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        count = config.decoder_layers if self.decoder else config.num_layers
        self.block = nn.ModuleList(Block(config, self.decoder, i == 0) for i in range(count))
        self.final_layer_norm = RMSNorm(config)
        self.dropout = Dropout(config.dropout_rate)
        self.register_buffer("buckets", buckets(config, not self.decoder), persistent=False)
        self.reach = config.relative_attention_max_distance

    def blocks(self) -> Iterator[Block]:
        yield from cast(Iterable[Block], self.block)

    def start(self, embedded: Tensor) -> Tensor:
        """Enter the residual stream, which has the norms' precision."""
        return self.dropout(embedded.to(self.final_layer_norm.weight.dtype))

    def end(self, x: Tensor) -> Tensor:
        return self.dropout(self.final_layer_norm(x))

    def bias(self, distance: Tensor) -> Tensor:
        """What is added to the scores (1, H, Q, K) at distances (Q, K)."""
        table = next(self.blocks()).own.relative_attention_bias
        bucket = self.buckets[distance.clamp(-self.reach, self.reach) + self.reach]
        return table(bucket).permute(2, 0, 1)[None]


class Encoder(Stack):
    """Embedded source to hidden states."""

    decoder = False

    def forward(self, embedded: Tensor, attention_mask: Tensor) -> Tensor:
        """embedded (B, E, M), attention_mask (B, E) of 0 and 1, to hidden states (B, E, M)."""
        positions = torch.arange(embedded.shape[1], device=embedded.device)
        bias = self.bias(positions - positions[:, None])
        bias = bias + hide(attention_mask[:, None, None] == 0, bias.dtype)
        x = self.start(embedded)
        for block in self.block:
            x, _ = block(x, bias)
        return self.end(x)


class Decoder(Stack):
    """Embedded target, and the source's keys and values, to hidden states."""

    decoder = True

    def sources(self, hidden: Tensor) -> list[Cache]:
        """Each layer's keys and values of the encoder's hidden states (B, E, M)."""
        return [block.cross.cache(hidden) for block in self.blocks()]

    def forward(
        self,
        embedded: Tensor,
        attention_mask: Tensor,
        sources: Sequence[Cache],
        past: Sequence[Cache] | None = None,
    ) -> tuple[Tensor, list[Cache]]:
        """embedded (B, S, M) and the source's attention_mask (B, E) to hidden states (B, S, M)
        and each layer's own keys and values, past and new."""
        length = embedded.shape[1]
        total = length if past is None else past[0][0].shape[2] + length
        keys = torch.arange(total, device=embedded.device)
        queries = torch.arange(length, device=embedded.device)[:, None] + (total - length)
        bias = self.bias(keys - queries)
        bias = bias + hide(keys > queries, bias.dtype)
        mask = hide(attention_mask[:, None, None] == 0, bias.dtype).expand(-1, -1, length, -1)
        x, presents = self.start(embedded), list[Cache]()
        for layer, block in enumerate(self.block):
            x, present = block(x, bias, past[layer] if past else None, sources[layer], mask)
            presents.append(present)
        return self.end(x), presents


class T5(Model):
    """T5 with its language-model head: transformers' T5ForConditionalGeneration, name for name."""

    # What the feed-forward sublayers add to the residual stream is beyond float16 in the larger
    # checkpoints; the stream has the norms' precision.
    keep_in_float32 = ("*.wo", "*layer_norm")

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.shared.weight
        self._initialise()

    def _initialise(self) -> None:
        """Mesh TensorFlow's rules: normal, 1 / sqrt(fan in); that of q, which takes the scores'
        scale, is divided by sqrt(d_kv); the embedding's is 1."""
        factor = self.config.initializer_factor
        for name, module in self.named_modules():
            if isinstance(module, RMSNorm):
                nn.init.constant_(module.weight, factor)
            elif isinstance(module, nn.Linear) and module.weight is not self.shared.weight:
                std = module.in_features**-0.5
                std *= self.config.d_kv**-0.5 if name.endswith("Attention.q") else 1.0
                nn.init.normal_(module.weight, std=factor * std)
            elif isinstance(module, nn.Embedding):
                std = 1.0 if module is self.shared else self.config.d_model**-0.5
                nn.init.normal_(module.weight, std=factor * std)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor
    ) -> Tensor:
        """Source ids (B, E), their mask of 0 and 1, target ids (B, S) to logits (B, S, V)."""
        return self.head(self.hidden(input_ids, attention_mask, decoder_input_ids))

    def hidden(
        self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor
    ) -> Tensor:
        """The same up to the output layer: (B, S, M)."""
        source = self.encoder(self.shared(input_ids), attention_mask)
        sources = self.decoder.sources(source)
        return self.decoder(self.shared(decoder_input_ids), attention_mask, sources)[0]

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., M) to logits (..., V)."""
        return self.lm_head((hidden * self.config.output_scale).to(self.lm_head.weight.dtype))

    def updates(self) -> Sequence[Update]:
        return [Update(name="t5", module=self, loss=self.loss)]

    def loss(self, batch: Batch) -> Losses:
        """Cross-entropy, with label smoothing, of "labels" (B, S) given "input_ids" (B, E) and
        "attention_mask" (B, E); labels of -100 are ignored."""
        logits, labels = self._labelled(batch)
        return {"loss": cross_entropy(logits, labels, self.config.label_smoothing)}

    def _labelled(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (N, V), only where there is a label, and the N labels."""
        labels = batch["labels"]
        start = torch.full_like(labels[:, :1], self.config.decoder_start_token_id)
        given = torch.cat((start, labels[:, :-1]), dim=1)
        given = given.masked_fill(given == IGNORED, self.config.pad_token_id)
        hidden = self.hidden(batch["input_ids"], batch["attention_mask"], given)
        chosen = labels != IGNORED
        return self.head(hidden[chosen]), labels[chosen]

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Losses:
        """Plain cross-entropy and accuracy over the labels."""
        logits, labels = self._labelled(batch)
        return {
            "loss": cross_entropy(logits, labels),
            "accuracy": (logits.argmax(-1) == labels).float().mean(),
            "count": (batch["labels"] != IGNORED).sum(),
        }

    def derive(self, means: Mapping[str, float]) -> Mapping[str, float]:
        """Perplexity: the exponential of the mean loss."""
        return {"perplexity": math.exp(min(means["loss"], 700))}  # exp overflows beyond

    def graphs(self) -> Sequence[Graph]:
        return graphs.graphs(self)

    def cases(self) -> Iterator[Case]:
        return graphs.cases(self.config)
