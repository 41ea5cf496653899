"""Differentiable augmentation (Zhao et al. 2020): the discriminator sees every picture changed,
real and generated alike, and the gradient passes through the change. Pictures (B, C, H, W)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cambrian_gan.config import Augmentation


def augmented(pictures: Tensor, kinds: Sequence[Augmentation]) -> Tensor:
    """Each kind in turn, by torch's generator."""
    for kind in kinds:
        pictures = {"brightness": brightness, "translation": translation, "cutout": cutout}[kind](
            pictures
        )
    return pictures


def brightness(pictures: Tensor) -> Tensor:
    """Each picture lighter or darker by up to a half."""
    return pictures + torch.rand(len(pictures), 1, 1, 1, device=pictures.device) - 0.5


def translation(pictures: Tensor) -> Tensor:
    """Each picture moved by up to an eighth of its side, either way, black filling in."""
    count, _, height, width = pictures.shape
    rows, columns = (
        torch.arange(side, device=pictures.device)
        + torch.randint(-(side // 8), side // 8 + 1, (count, 1), device=pictures.device)
        for side in (height, width)
    )
    padded = F.pad(pictures, (1, 1, 1, 1), value=-1.0)
    rows, columns = (rows + 1).clamp(0, height + 1), (columns + 1).clamp(0, width + 1)
    places = torch.arange(count, device=pictures.device)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[places, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def cutout(pictures: Tensor) -> Tensor:
    """A square of half the side, anywhere, in the middle grey."""
    count, _, height, width = pictures.shape
    hidden = [
        ((torch.arange(side, device=pictures.device) - centre).abs() <= side // 4)
        for side, centre in (
            (side, torch.randint(0, side, (count, 1), device=pictures.device))
            for side in (height, width)
        )
    ]
    return pictures * ~(hidden[0][:, None, :, None] & hidden[1][:, None, None, :])
