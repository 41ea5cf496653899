"""Points to classes, on any engine and in numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cambrian
import numpy as np
from cambrian.scores import classification

from .config import NovelConfig
from .data import Points, Scaler


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a call may vary: nothing yet."""


class PointClassification(cambrian.Pipeline):
    """The class of each point: {"input", "label", "scores"}."""

    options = Options
    config: NovelConfig
    processor: Scaler

    def __call__(self, inputs: Sequence[str], **options: Any) -> list[Any]:
        """One result for each point, given as numbers between blanks."""
        scores = self.compute(np.stack([self.point(text) for text in inputs]))
        return [
            {"input": text, "label": int(row.argmax()), "scores": row.tolist()}
            for text, row in zip(inputs, scores, strict=True)
        ]

    def point(self, text: str) -> Points:
        """Read one; UsageError if it is none."""
        try:
            numbers = np.array([float(word) for word in text.split()], np.float32)
        except ValueError:
            numbers = np.zeros(0, np.float32)
        if len(numbers) != self.config.num_features:
            raise cambrian.UsageError(
                f"'{text}' is no point; write {self.config.num_features} numbers between blanks."
            )
        return numbers

    def compute(self, points: Points) -> Points:
        """Probabilities (N, K) of points (N, F)."""
        outputs, _ = self.session.run("model", {"points": self.processor(points)})
        logits = outputs["logits"].astype(np.float32)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    def show(self, result: Any) -> str:
        """A result as a person reads it."""
        return f"{result['label']}  {max(result['scores']):.4f}"

    def score(self, examples: Sequence[tuple[Any, Any]], **options: Any) -> cambrian.Scores:
        """Accuracy, macro F1 and the confusion matrix."""
        texts, expected = zip(*examples, strict=True)
        predicted = [str(result["label"]) for result in self(texts)]
        labels = [str(number) for number in range(self.config.num_labels)]
        return classification(labels, expected, predicted)

    def probe(self) -> Mapping[str, Any]:
        """The classes of a few points, which must be equal on every engine."""
        noise = np.random.Generator(np.random.Philox(0))
        points = noise.standard_normal((8, self.config.num_features), np.float32)
        return {"labels": self.compute(points).argmax(-1).astype(np.int64)}
