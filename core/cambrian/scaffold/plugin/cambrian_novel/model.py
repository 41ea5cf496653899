"""The network, how it is trained, and what of it is deployed.

Shapes: B batch, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cambrian
import numpy as np
from torch import Tensor, nn

from .config import NovelConfig


class Novel(cambrian.Model):
    """A multilayer perceptron (Rumelhart, Hinton and Williams 1986)."""

    def __init__(self, config: NovelConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        width = config.num_features
        for _ in range(config.num_hidden_layers):
            layers += [nn.Linear(width, config.hidden_size), nn.GELU()]
            width = config.hidden_size
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, config.num_labels)

    def forward(self, points: Tensor) -> tuple[Tensor]:
        """(B, F) to logits (B, K)."""
        return (self.classifier(self.layers(points.to(self.classifier.weight.dtype))),)

    def updates(self) -> Sequence[cambrian.Update]:
        """One: everything moves by the cross-entropy."""
        return [cambrian.Update(name="classifier", module=self, loss=self.loss)]

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy in nats, and how many were right."""
        (logits,) = self(batch["points"])
        right = logits.argmax(-1) == batch["labels"]
        loss = nn.functional.cross_entropy(logits.float(), batch["labels"])
        return {"loss": loss, "accuracy": right.float().mean()}

    def graphs(self) -> Sequence[cambrian.Graph]:
        """One, from points to logits, for any number of points."""
        signature = cambrian.Signature(
            inputs=(cambrian.Port("points", "float32", ("batch", self.config.num_features)),),
            outputs=(cambrian.Port("logits", "float32", ("batch", self.config.num_labels)),),
        )
        return [cambrian.Graph(name="model", module=self, signature=signature)]

    def cases(self) -> Iterator[cambrian.Case]:
        """What an export must compute as the model does: batches of 1, 2 and 17."""
        for size in (1, 2, 17):
            noise = np.random.Generator(np.random.Philox(size))
            points = noise.standard_normal((size, self.config.num_features), np.float32)
            yield cambrian.Case(f"batch {size}", (("model", {"points": points}),))
