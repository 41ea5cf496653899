"""A vision transformer (Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words").

Shapes: B batch, C channels, P patches a side, S = P * P + 1 tokens, H heads, D head size, E = H * D
hidden size, K classes. Submodules carry the reference checkpoints' names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cambrian import Case, Graph, Model, Port, Signature, Update
from cambrian.layers import Dropout, attention, cross_entropy
from cambrian.model import Batch, Losses
from cambrian_vit.config import ViTConfig


class ViTForImageClassification(Model):
    """Pictures to classes, read off the token that stands before the patches."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.vit = ViT(config)
        self.classifier = nn.Linear(config.hidden_size, len(config.id2label))
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1:  # not the scales of the norms
                nn.init.trunc_normal_(parameter, std=config.initializer_range)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, image_size, image_size) to logits (B, K) and features (B, E)."""
        features = self.vit(pixel_values.to(self.classifier.weight.dtype))[:, 0]
        return self.classifier(features), features

    def updates(self) -> Sequence[Update]:
        return [Update(name="vit", module=self, loss=self.loss)]

    def loss(self, batch: Batch) -> Losses:
        """Cross-entropy of a batch, in nats."""
        logits, _ = self(batch["pixel_values"])
        return {"loss": cross_entropy(logits, batch["labels"])}

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Losses:
        logits, _ = self(batch["pixel_values"])
        right = logits.argmax(-1) == batch["labels"]
        return {"loss": cross_entropy(logits, batch["labels"]), "accuracy": right.float().mean()}

    def graphs(self) -> Sequence[Graph]:
        config = self.config
        signature = Signature(
            inputs=(Port("pixel_values", "float32", ("batch", *self._picture)),),
            outputs=(
                Port("logits", "float32", ("batch", len(config.id2label))),
                Port("features", "float32", ("batch", config.hidden_size)),
            ),
        )
        return [Graph(name="model", module=self, signature=signature)]

    def cases(self) -> Iterator[Case]:
        """Batches of 1, 2, 3 and 17 pictures of noise, and black ones."""
        for size in (1, 2, 3, 17):
            generator = np.random.Generator(np.random.Philox(size))
            pixels = generator.uniform(-1, 1, (size, *self._picture)).astype(np.float32)
            yield Case(f"batch {size}", (("model", {"pixel_values": pixels}),))
        black = np.full((2, *self._picture), -1, np.float32)
        yield Case("black", (("model", {"pixel_values": black}),))

    @property
    def _picture(self) -> tuple[int, int, int]:
        return self.config.num_channels, self.config.image_size, self.config.image_size


class ViT(nn.Module):
    """Pictures (B, C, image_size, image_size) to hidden states (B, S, E)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.layernorm(self.encoder(self.embeddings(pixel_values)))


class Embeddings(nn.Module):
    """A token for each patch, after one that is the same for all pictures, and their positions."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        tokens = (config.image_size // config.patch_size) ** 2 + 1
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.empty(1, tokens, config.hidden_size))
        self.patch_embeddings = Patches(config)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embeddings(pixel_values)
        x = torch.cat((self.cls_token.expand(len(patches), -1, -1), patches), 1)
        return self.dropout(x + self.position_embeddings)


class Patches(nn.Module):
    """A projection of each patch, (B, C, image_size, image_size) to (B, P * P, E)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        side = config.patch_size
        self.projection = nn.Conv2d(config.num_channels, config.hidden_size, side, side)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.projection(pixel_values).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """The layers, one after the other."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layer:
            x = layer(x)
        return x


class Layer(nn.Module):
    """Attention and feed-forward, each of the normalised input and added to it."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attention = Attention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.intermediate = Dense(config.hidden_size, config.intermediate_size)
        self.output = Dense(config.intermediate_size, config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.layernorm_before(x)))
        return x + self.dropout(self.output(F.gelu(self.intermediate(self.layernorm_after(x)))))


class Attention(nn.Module):
    """The attention sublayer."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.output = Dense(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.attention(x))


class SelfAttention(nn.Module):
    """Every token looks at every other, (B, S, E) to (B, S, E)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.query = nn.Linear(width, width, config.qkv_bias)
        self.key = nn.Linear(width, width, config.qkv_bias)
        self.value = nn.Linear(width, width, config.qkv_bias)
        self.heads = config.num_attention_heads
        self.rate = config.attention_probs_dropout_prob

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        y = attention(query, key, value, dropout=self.rate, training=self.training)
        return y.transpose(1, 2).flatten(2)


class Dense(nn.Module):
    """A projection, alone under its name."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.dense = nn.Linear(before, after)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)
