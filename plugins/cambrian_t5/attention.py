"""T5's attention: scores by content and by relative distance. Shapes as in `model`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cambrian.layers import attention
from cambrian_t5.config import T5Config

Cache = tuple[Tensor, Tensor]  # keys and values, each (B, H, K, D)


def hide(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a key may be seen, a large negative number where it is `hidden`, to add to scores.

    Not minus infinity: a source of nothing but padding must not give NaN.
    """
    least = torch.finfo(dtype).min / 2  # halved, so that adding a score cannot overflow
    return torch.full((), least, dtype=dtype, device=hidden.device).where(hidden, 0)


def buckets(config: T5Config, bidirectional: bool) -> Tensor:
    """The bucket of every distance (key's position less the query's) from -m to m, where m is
    relative_attention_max_distance: (2 * m + 1,). All farther ones share the ends' buckets.

    Half of the buckets are for single distances, the others grow logarithmically (section 2.1);
    looking back and ahead have buckets of their own, unless there is no looking ahead.
    """
    count, limit = config.relative_attention_num_buckets, config.relative_attention_max_distance
    distance = torch.arange(-limit, limit + 1, device="cpu")
    ahead = torch.zeros_like(distance)
    if bidirectional:
        count //= 2
        ahead = (distance > 0) * count
        distance = distance.abs()
    else:
        distance = -distance.clamp(max=0)
    exact = count // 2
    growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(limit / exact)
    far = (exact + (growth * (count - exact)).long()).clamp(max=count - 1)
    return ahead + torch.where(distance < exact, distance, far)


class Attention(nn.Module):
    """Attention of x to itself or to other keys and values. Scores are not scaled: the
    initialisation of q is instead."""

    def __init__(self, config: T5Config, relative: bool = False) -> None:
        super().__init__()
        inner = config.inner_size
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.k = nn.Linear(config.d_model, inner, bias=False)
        self.v = nn.Linear(config.d_model, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        if relative:
            self.relative_attention_bias = nn.Embedding(
                config.relative_attention_num_buckets, config.num_heads
            )
        self.num_heads = config.num_heads
        self.dropout_rate = config.dropout_rate

    def heads(self, x: Tensor) -> Tensor:
        """(B, K, H * D) to (B, H, K, D)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def cache(self, x: Tensor) -> Cache:
        """The keys and values of x (B, K, M)."""
        x = x.to(self.k.weight.dtype)
        return self.heads(self.k(x)), self.heads(self.v(x))

    def forward(self, x: Tensor, cache: Cache, bias: Tensor) -> Tensor:
        """x (B, Q, M); bias, broadcast to (B, H, Q, K), is added to the scores."""
        query = self.heads(self.q(x.to(self.q.weight.dtype)))
        rate, training = self.dropout_rate, self.training
        y = attention(query, *cache, mask=bias, scale=1.0, dropout=rate, training=training)
        return self.o(y.transpose(1, 2).flatten(2))
