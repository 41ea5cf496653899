"""The network whose features FID is defined over: Inception v3, as TensorFlow published it in 2015.

It is part of a measure and no family: nobody trains, runs or exports it. Its weights are a file of
the user's, in the names that pytorch-fid gave them (pt_inception-2015-12-05-6726825d.pth), and are
as untrusted as any.

The network is that of Szegedy et al. 2015, "Rethinking the Inception Architecture for Computer
Vision" (arXiv:1512.00567), but for two things that the published graph does: an average counts
nothing beyond the edge, and the last block takes a maximum where the others take an average.

Shapes: B batch, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from cambrian.checkpoint import Shard, read_outlines, read_tensors
from cambrian.errors import BrokenFile, listed
from cambrian.progress import Progress, told, untold
from cambrian.torch_files import converted
from cambrian.weight_files import header

PUBLISHED = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # sha256 of the file
SIDE = 299  # pixels, of what the network sees
BATCH = 32  # pictures at once: about 1 GB
FEATURES, CLASSES = 2048, 1008


@dataclass(frozen=True)
class Layer:
    """A convolution, a norm and a ReLU. A step of 1 keeps height and width, if padded."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True


@dataclass(frozen=True)
class Block:
    """Branches side by side, each of layers one after another (those in a tuple side by side
    again), and beside them the pooled input, brought to so many channels unless that is 0."""

    branches: tuple[tuple[Layer | tuple[Layer, ...], ...], ...]
    pool: Callable[[Tensor], Tensor]
    channels: int = 0


def average(x: Tensor) -> Tensor:
    """Means of 3 by 3, of what lies within the picture."""
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def largest(x: Tensor) -> Tensor:
    """Maxima of 3 by 3."""
    return F.max_pool2d(x, 3, 1, 1)


def halved(x: Tensor) -> Tensor:
    """Every other maximum of 3 by 3."""
    return F.max_pool2d(x, 3, 2)


SQUARE, ROW, COLUMN, SHORT_ROW, SHORT_COLUMN = (3, 3), (1, 7), (7, 1), (1, 3), (3, 1)


def figure_5(channels: int) -> Block:
    """A block at 35 by 35, the paper's figure 5."""
    return Block(
        (
            (Layer("branch1x1", 64),),
            (Layer("branch5x5_1", 48), Layer("branch5x5_2", 64, (5, 5))),
            (
                Layer("branch3x3dbl_1", 64),
                Layer("branch3x3dbl_2", 96, SQUARE),
                Layer("branch3x3dbl_3", 96, SQUARE),
            ),
        ),
        average,
        channels,
    )


def figure_6(inner: int) -> Block:
    """A block at 17 by 17, the paper's figure 6."""
    return Block(
        (
            (Layer("branch1x1", 192),),
            (
                Layer("branch7x7_1", inner),
                Layer("branch7x7_2", inner, ROW),
                Layer("branch7x7_3", 192, COLUMN),
            ),
            (
                Layer("branch7x7dbl_1", inner),
                Layer("branch7x7dbl_2", inner, COLUMN),
                Layer("branch7x7dbl_3", inner, ROW),
                Layer("branch7x7dbl_4", inner, COLUMN),
                Layer("branch7x7dbl_5", 192, ROW),
            ),
        ),
        average,
        192,
    )


def figure_7(pool: Callable[[Tensor], Tensor]) -> Block:
    """A block at 8 by 8, the paper's figure 7."""

    def both(name: str) -> tuple[Layer, Layer]:
        return Layer(f"{name}a", 384, SHORT_ROW), Layer(f"{name}b", 384, SHORT_COLUMN)

    return Block(
        (
            (Layer("branch1x1", 320),),
            (Layer("branch3x3_1", 384), both("branch3x3_2")),
            (
                Layer("branch3x3dbl_1", 448),
                Layer("branch3x3dbl_2", 384, SQUARE),
                both("branch3x3dbl_3"),
            ),
        ),
        pool,
        192,
    )


STEM = (
    Layer("Conv2d_1a_3x3", 32, SQUARE, 2, padded=False),
    Layer("Conv2d_2a_3x3", 32, SQUARE, padded=False),
    Layer("Conv2d_2b_3x3", 64, SQUARE),
    Layer("Conv2d_3b_1x1", 80),
    Layer("Conv2d_4a_3x3", 192, SQUARE, padded=False),
)
HALVED = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")  # of the stem, those whose output is
BLOCKS = {
    "Mixed_5b": figure_5(32),
    "Mixed_5c": figure_5(64),
    "Mixed_5d": figure_5(64),
    "Mixed_6a": Block(
        (
            (Layer("branch3x3", 384, SQUARE, 2, padded=False),),
            (
                Layer("branch3x3dbl_1", 64),
                Layer("branch3x3dbl_2", 96, SQUARE),
                Layer("branch3x3dbl_3", 96, SQUARE, 2, padded=False),
            ),
        ),
        halved,
    ),
    "Mixed_6b": figure_6(128),
    "Mixed_6c": figure_6(160),
    "Mixed_6d": figure_6(160),
    "Mixed_6e": figure_6(192),
    "Mixed_7a": Block(
        (
            (Layer("branch3x3_1", 192), Layer("branch3x3_2", 320, SQUARE, 2, padded=False)),
            (
                Layer("branch7x7x3_1", 192),
                Layer("branch7x7x3_2", 192, ROW),
                Layer("branch7x7x3_3", 192, COLUMN),
                Layer("branch7x7x3_4", 192, SQUARE, 2, padded=False),
            ),
        ),
        halved,
    ),
    "Mixed_7b": figure_7(average),
    "Mixed_7c": figure_7(largest),
}


class Convolution(nn.Module):
    """What a Layer describes."""

    def __init__(self, inputs: int, layer: Layer) -> None:
        super().__init__()
        height, width = layer.kernel
        padding = (height // 2, width // 2) if layer.padded else 0
        self.conv = nn.Conv2d(
            inputs, layer.channels, layer.kernel, layer.stride, padding, bias=False
        )
        self.bn = nn.BatchNorm2d(layer.channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """What a Block describes; `channels` is how many come out of it."""

    def __init__(self, inputs: int, block: Block) -> None:
        super().__init__()
        self.pool = block.pool
        self.channels = block.channels or inputs
        self.branches: list[list[tuple[str, ...]]] = []
        for branch in block.branches:
            channels, names = inputs, list[tuple[str, ...]]()
            for step in branch:
                layers = step if isinstance(step, tuple) else (step,)
                for layer in layers:
                    self.add_module(layer.name, Convolution(channels, layer))
                channels = sum(layer.channels for layer in layers)
                names.append(tuple(layer.name for layer in layers))
            self.channels += channels
            self.branches.append(names)
        self.branch_pool = (
            Convolution(inputs, Layer("branch_pool", block.channels))
            if block.channels
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        found: list[Tensor] = []
        for branch in self.branches:
            y = x
            for step in branch:
                y = torch.cat([self.get_submodule(name)(y) for name in step], 1)
            found.append(y)
        return torch.cat([*found, self.branch_pool(self.pool(x))], 1)


class Inception(nn.Module):
    """Pictures to features. Its classes are of no use here: they tell its file from torchvision's,
    which has 1,000."""

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for layer in STEM:
            self.add_module(layer.name, Convolution(channels, layer))
            channels = layer.channels
        for name, block in BLOCKS.items():
            mixed = Mixed(channels, block)
            self.add_module(name, mixed)
            channels = mixed.channels
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) of 0 to 255, grey or in three colours, to features (B, 2048)."""
        x = F.interpolate(pixels.float() / 255, (SIDE, SIDE), mode="bilinear", align_corners=False)
        x = 2 * x.expand(-1, 3, -1, -1) - 1
        for name in (*(layer.name for layer in STEM), *BLOCKS):
            x = self.get_submodule(name)(x)
            if name in HALVED:
                x = halved(x)
        return x.mean((2, 3))

    @torch.inference_mode()
    def describe(
        self, pixels: NDArray[np.uint8], progress: Progress = untold
    ) -> NDArray[np.float32]:
        """Features (N, 2048) of pictures (N, C, H, W), a few at a time."""
        parts = np.split(pixels, range(BATCH, len(pixels), BATCH))
        found = [
            self(torch.tensor(part, device=self.fc.weight.device)).cpu().numpy()
            for part in told(parts, "batches of pictures", progress)
        ]
        return np.concatenate(found)


def open_inception(file: Path, device: str = "auto") -> Inception:
    """The network with the weights of a file, on CUDA if torch has that, unless "cpu" is asked for.

    BrokenFile as of `require_inception`.
    """
    shard = require_inception(file)
    network = outline()
    network.load_state_dict(read_tensors([shard]), assign=True)
    # ONNX Runtime may have CUDA where torch has not.
    device = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    # On a CPU, channels that lie together take two thirds of the time.
    return network.eval().to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def require_inception(file: Path) -> Shard:
    """What torch.save or safetensors wrote, without its numbers; BrokenFile unless its tensors are
    the network's, by name, shape and kind of number."""
    safe = file if file.suffix == ".safetensors" else converted(file)
    shard = Shard(file, safe, header(safe))
    wanted, held = (
        {name: (tensor.shape, tensor.is_floating_point()) for name, tensor in each.items()}
        for each in (outline().state_dict(), read_outlines([shard]))
    )
    wrong = sorted(n for n in wanted.keys() | held.keys() if wanted.get(n) != held.get(n))
    if wrong:
        raise BrokenFile(
            f"{file} does not hold the Inception network of FID: missing, too many or of another "
            f"shape are {listed([*map(ascii, wrong)])}; name pytorch-fid's "
            "pt_inception-2015-12-05-6726825d.pth, or a classifier's folder."
        )
    return shard


def outline() -> Inception:
    """The network without numbers."""
    with torch.device("meta"):
        return Inception()
