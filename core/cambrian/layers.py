"""What torch has, done faster where a model is trained on a CPU; elsewhere torch's own.

A family is free to use these or not. In evaluation and in exported graphs there is no difference.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cambrian.data import IGNORED

CACHED = 2**20  # numbers that CrossEntropy works on at a time: 4 MiB of float32
# Up to this length a CPU trains no slower with plain matmuls than with the fused kernel, and in
# bfloat16 or with float32 matmuls of "medium" precision up to 1.6 times as fast (whole step).
SHORT = 256


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    training: bool = False,
) -> Tensor:
    """softmax(query key^T * scale + mask) value, by whatever computes it faster here.

    query (B, H, Q, D); key, value (B, H, K, D); mask, broadcast to (B, H, Q, K), is added to the
    scores; scale is D**-0.5 unless given. `causal` stands for a mask, with Q equal to K.
    """
    if not (training and query.device.type == "cpu" and key.shape[2] <= SHORT):
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout if training else 0.0,
            is_causal=causal,
            scale=scale,
        )
    if causal:
        mask = query.new_full((query.shape[2], key.shape[2]), -math.inf).triu(1)
    elif mask is None:
        mask = query.new_zeros(())
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    return plain_attention(query, key, value, mask=mask, scale=factor, dropout=dropout)


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor, scale: float, dropout: float
) -> Tensor:
    """What F.scaled_dot_product_attention computes, step by step."""
    # One product that scales and adds the mask; it wants batch and heads as one dimension.
    wide = mask.expand(*query.shape[:3], key.shape[2]).flatten(0, 1)
    scores = torch.baddbmm(wide, query.flatten(0, 1), key.flatten(0, 1).mT, alpha=scale)
    weights = scores.softmax(-1).unflatten(0, query.shape[:2])
    return drop(weights, dropout) @ value


class Dropout(nn.Module):
    """nn.Dropout, by `drop`."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return drop(x, self.p) if self.training else x


def drop(x: Tensor, p: float) -> Tensor:
    """Zero each element with probability p, and scale the others up so that the mean stays.

    On a CPU torch draws a number for each element, in one thread, which can be a third of a step;
    here four elements share the bits of one. The probability is rounded to 16 bits.
    """
    if p == 0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    steps = 1 << 16
    cut = min(round(p * steps), steps - 1)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    return x * (bits >= cut - steps // 2).to(x.dtype).mul_(steps / (steps - cut))


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """F.cross_entropy in float32: logits (N, V) of any dtype and labels (N,) to the mean over the
    labels that are not IGNORED; 0 if N is 0."""
    training = torch.is_grad_enabled() and logits.requires_grad
    ours = training and logits.device.type == "cpu" and not torch.compiler.is_compiling()
    if len(labels) and not ours:
        return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
    return CrossEntropy.apply(logits, labels, label_smoothing)


class CrossEntropy(torch.autograd.Function):
    """Cross-entropy and its gradient, a few rows at a time.

    The gradient is found along with the loss while a row's probabilities are in the cache, and
    there is never a float32 copy of all logits: at GPT-2's vocabulary that is most of the memory.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The loss."""
        weights = (labels != IGNORED).float()
        weights = (weights / weights.sum())[:, None]
        gradient, loss = torch.empty_like(logits), logits.new_zeros((), dtype=torch.float32)
        rows, vocabulary = max(1, CACHED // logits.shape[1]), logits.shape[1]
        chunks = (tensor.split(rows) for tensor in (logits, labels, weights, gradient))
        for piece, label, weight, slope in zip(*chunks, strict=True):
            target = label.clamp(min=0)[:, None]
            scores = piece.log_softmax(-1, dtype=torch.float32)
            right = (1 - smoothing) * scores.gather(1, target)
            if smoothing:
                right += smoothing * scores.mean(-1, keepdim=True)
            loss -= (right * weight).sum()
            scores.exp_().scatter_add_(1, target, torch.full_like(weight, smoothing - 1))
            if smoothing:
                scores -= smoothing / vocabulary
            slope.copy_(scores.mul_(weight))
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradient for the logits."""
        (gradient,) = ctx.saved_tensors
        return gradient * scale, None, None
