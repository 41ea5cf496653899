"""GPT-2 (Radford et al. 2019): a decoder-only transformer with pre-normalisation.

Shapes: B batch, S sequence (new tokens), P past (cached tokens), T = P + S, H heads, D head size,
E = H * D embedding, V vocabulary. Submodules carry the reference checkpoint's names.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cambrian.artifact import Port, Signature
from cambrian.data import IGNORED
from cambrian.layers import Dropout, attention, cross_entropy
from cambrian.model import Batch, Case, Graph, Losses, Model, Update
from cambrian.runtime import Array
from cambrian_gpt.config import GPTConfig

Past = tuple[Tensor, Tensor]  # keys and values of the tokens so far, each (B, H, P, D)

ACTIVATIONS = {
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "gelu_fast": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
}


class Attention(nn.Module):
    """Causal self-attention over the past and the new tokens."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.resid_dropout = Dropout(config.resid_pdrop)
        self.n_head = config.n_head
        self.attn_pdrop = config.attn_pdrop
        self.scale = config.head_size**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1

    def forward(self, x: Tensor, mask: Tensor | None, past: Past | None) -> tuple[Tensor, Past]:
        """x (B, S, E); mask (B, 1, S, T), added to the scores, or None for causal with no past."""
        parts = self.c_attn(x)
        if self.training:  # one copy for the products below, which would otherwise make three
            parts = parts.unflatten(-1, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)
            query, key, value = parts.contiguous().unbind()
        else:
            query, key, value = (
                part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in parts.chunk(3, -1)
            )
        if past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        y = attention(
            query,
            key,
            value,
            mask=mask,
            causal=mask is None,
            scale=self.scale,
            dropout=self.attn_pdrop,
            training=self.training,
        )
        y = self.c_proj(y.transpose(1, 2).flatten(2))
        return self.resid_dropout(y), (key, value)


class MLP(nn.Module):
    """The feed-forward sublayer."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        inner = config.n_inner or 4 * config.n_embd
        self.c_fc = nn.Linear(config.n_embd, inner)
        self.c_proj = nn.Linear(inner, config.n_embd)
        self.act = ACTIVATIONS[config.activation_function]
        self.dropout = Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))


class Block(nn.Module):
    """Attention and feed-forward, each on normalised input and added to the residual stream."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Tensor | None, past: Past | None) -> tuple[Tensor, Past]:
        y, present = self.attn(self.ln_1(x), mask, past)
        x = x + y
        return x + self.mlp(self.ln_2(x)), present


class Transformer(nn.Module):
    """Embeddings, blocks and the last normalisation: token ids to hidden states."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        mask: Tensor | None = None,
        past: Sequence[Past] | None = None,
    ) -> tuple[Tensor, list[Past]]:
        """Return hidden states (B, S, E) and each layer's keys and values, past and new."""
        x = self.drop(self.wte(input_ids) + self.wpe(position_ids))
        presents: list[Past] = []
        for layer, block in enumerate(self.h):
            x, present = block(x, mask, past[layer] if past else None)
            presents.append(present)
        return self.ln_f(x), presents


def decoder_mask(attention_mask: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Attention mask (B, T) of 0 and 1 to an additive one (B, 1, S, T) for the last S tokens.

    What is hidden gets a large negative number, not minus infinity: rows of padding see nothing
    at all, and their softmax must not be NaN.
    """
    keys = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    queries = torch.arange(length, device=keys.device) + (attention_mask.shape[1] - length)
    causal = keys <= queries[:, None]
    visible = causal & attention_mask[:, None, None, :].bool()
    hidden = torch.finfo(dtype).min / 2  # halved, so that adding a score cannot overflow
    return torch.zeros((), dtype=dtype, device=visible.device).where(visible, hidden)


class GPT(Model):
    """GPT-2 with its language-model head: transformers' GPT2LMHeadModel, name for name."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.transformer.wte.weight
        self._initialise()

    def _initialise(self) -> None:
        """Normal weights, zero biases; the projections that end each of the 2 * n_layer sublayers
        are scaled down, so that their sum does not grow with depth (Radford et al. 2019, 2.3)."""
        std = self.config.initializer_range
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                shrink = math.sqrt(2 * self.config.n_layer) if name.endswith("c_proj") else 1.0
                nn.init.normal_(module.weight, std=std / shrink)
            if isinstance(module, nn.Linear) and module is not self.lm_head:
                nn.init.zeros_(module.bias)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Token ids (B, S) to logits (B, S, V); padding, on either side, is 0 in the mask."""
        mask = None
        if attention_mask is not None:
            mask = decoder_mask(attention_mask, input_ids.shape[1], self.lm_head.weight.dtype)
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
        return self.lm_head(self.transformer(input_ids, position_ids, mask)[0])

    def updates(self) -> Sequence[Update]:
        return [Update(name="gpt", module=self, loss=self.loss)]

    def loss(self, batch: Batch) -> Losses:
        """Cross-entropy of "labels" (B, S), the next tokens of "input_ids"; -100 is ignored."""
        logits = self(batch["input_ids"]).flatten(0, 1)
        return {"loss": cross_entropy(logits, batch["labels"].flatten())}

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Losses:
        return {**self.loss(batch), "count": (batch["labels"] != IGNORED).sum()}

    def derive(self, means: Mapping[str, float]) -> Mapping[str, float]:
        """Perplexity: the exponential of the mean loss."""
        return {"perplexity": math.exp(min(means["loss"], 700))}  # exp overflows beyond

    def graphs(self) -> Sequence[Graph]:
        signature = self._signature()
        return [
            Graph(name="decoder", module=Decoder(self), signature=signature, last={"logits": 1})
        ]

    def _signature(self) -> Signature:
        config = self.config
        dtype = str(self.lm_head.weight.dtype).removeprefix("torch.")
        names = [f"{i}.{part}" for i in range(config.n_layer) for part in ("key", "value")]

        def cache(prefix: str, length: str) -> tuple[Port, ...]:
            shape = ("batch", config.n_head, length, config.head_size)
            return tuple(Port(f"{prefix}.{name}", dtype, shape) for name in names)

        return Signature(
            inputs=(
                Port("input_ids", "int64", ("batch", "sequence")),
                Port("attention_mask", "int64", ("batch", "past + sequence")),
                Port("position_ids", "int64", ("batch", "sequence")),
                *cache("past_key_values", "past"),
            ),
            outputs=(
                Port("logits", dtype, ("batch", "sequence", config.vocab_size)),
                *cache("present", "past + sequence"),
            ),
            state={f"present.{name}": f"past_key_values.{name}" for name in names},
        )

    def cases(self) -> Iterator[Case]:
        """Batches of 1, 2, 5; 1, 2, 17 and most tokens; padded or not; cold or after 5 tokens."""
        for batch, past in itertools.product((1, 2, 5), (0, 5)):
            room = self.config.n_positions - past
            for length in sorted({n for n in (1, 2, 17, room) if 0 < n <= room}):
                widths = (past, length) if past else (length,)
                for padded in (False, True) if batch > 1 and widths[0] > 1 else (False,):
                    name = f"batch={batch} length={length}"
                    name += " padded" * padded + " cached" * (past > 0)
                    yield Case(name, tuple(self._calls(batch, widths, padded)))

    def _calls(
        self, batch: int, widths: tuple[int, ...], padded: bool
    ) -> Iterator[tuple[str, dict[str, Array]]]:
        """Successive calls of the decoder with random tokens; the padding is in the first."""
        shape = batch, sum(widths)
        tokens = np.random.Generator(np.random.Philox(0)).integers(
            self.config.vocab_size, size=shape
        )
        padding = np.linspace(0, widths[0] - 1, batch).astype(np.int64) * padded
        mask = (np.arange(shape[1]) >= padding[:, None]).astype(np.int64)
        positions = (mask.cumsum(-1) - 1).clip(min=0)
        for end in np.cumsum(widths):
            start = 0 if end == widths[0] else widths[0]
            yield (
                "decoder",
                {
                    "input_ids": tokens[:, start:end],
                    "attention_mask": mask[:, :end],
                    "position_ids": positions[:, start:end],
                },
            )


class Decoder(nn.Module):
    """The graph that is deployed: one step of decoding, of which prefill is the first.

    Names are those of Optimum's exports, so that what runs theirs runs ours.
    """

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, **past: Tensor
    ) -> tuple[Tensor, ...]:
        """`past` is past_key_values.{layer}.key and .value (B, H, P, D), P >= 0.

        Returns logits (B, S, V), then each layer's present key and value (B, H, T, D).
        """
        model, name = self.model, "past_key_values.{}.{}".format
        caches = [
            (past[name(i, "key")], past[name(i, "value")]) for i in range(model.config.n_layer)
        ]
        mask = decoder_mask(attention_mask, input_ids.shape[1], model.lm_head.weight.dtype)
        hidden, presents = model.transformer(input_ids, position_ids, mask, caches)
        return model.lm_head(hidden), *itertools.chain.from_iterable(presents)
