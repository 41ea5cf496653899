"""A convolutional classifier.

Shapes: B batch, C channels, H and W pixels, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cambrian.artifact import Port, Signature
from cambrian.model import Batch, Case, Graph, Losses, Model, Update
from cambrian_cnn.config import CNNConfig


class CNN(Model):
    """Pictures to classes: stages of two normed convolutions and a halving, then features."""

    def __init__(self, config: CNNConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        for before, after in pairwise((config.num_channels, *config.hidden_sizes)):
            for channels in (before, after):
                layers += [
                    nn.Conv2d(channels, after, 3, padding=1, bias=False),
                    nn.BatchNorm2d(after),
                    nn.ReLU(),
                ]
            layers += [nn.MaxPool2d(2)]
        self.stages = nn.Sequential(*layers)
        height, width = (side // 2 ** len(config.hidden_sizes) for side in config.image_size)
        self.features = nn.Linear(config.hidden_sizes[-1] * height * width, config.feature_size)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.feature_size, len(config.id2label))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) to logits (B, K) and features (B, F), which are at least 0."""
        pixels = pixel_values.to(self.features.weight.dtype)
        features = F.relu(self.features(self.stages(pixels).flatten(1)))
        return self.classifier(self.dropout(features)), features

    def updates(self) -> Sequence[Update]:
        return [Update(name="classifier", module=self, loss=self.loss)]

    def loss(self, batch: Batch) -> Losses:
        """Cross-entropy of a batch, in nats."""
        logits, _ = self(batch["pixel_values"])
        return {"loss": F.cross_entropy(logits.float(), batch["labels"])}

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Losses:
        logits, _ = self(batch["pixel_values"])
        right = logits.argmax(-1) == batch["labels"]
        loss = F.cross_entropy(logits.float(), batch["labels"])
        return {"loss": loss, "accuracy": right.float().mean()}

    def graphs(self) -> Sequence[Graph]:
        config = self.config
        signature = Signature(
            inputs=(Port("pixel_values", "float32", ("batch", config.num_channels,
                                                     *config.image_size)),),
            outputs=(
                Port("logits", "float32", ("batch", len(config.id2label))),
                Port("features", "float32", ("batch", config.feature_size)),
            ),
        )  # fmt: skip
        return [Graph(name="model", module=self, signature=signature)]

    def cases(self) -> Iterator[Case]:
        """Batches of 1, 2, 3 and 17, of noise and of black."""
        shape = (self.config.num_channels, *self.config.image_size)
        for size in (1, 2, 3, 17):
            rng = np.random.Generator(np.random.Philox(size))
            pixels = rng.random((size, *shape), np.float32)
            yield Case(f"batch {size}", (("model", {"pixel_values": pixels}),))
        yield Case("black", (("model", {"pixel_values": np.zeros((2, *shape), np.float32)}),))
