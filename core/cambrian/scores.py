"""Figures of a model on held-out examples. Numpy alone, whatever the engine was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cambrian.errors import UsageError
from cambrian.files import write_with

PICTURES = (".svg", ".png", ".pdf")
NUMBERED = 40  # labels; a larger matrix is drawn without names and numbers


def require_picture(file: Path) -> None:
    """UsageError for the name of an unknown kind of file."""
    if file.suffix not in PICTURES:
        raise UsageError(f"{file} is no picture's name; end it in {', '.join(PICTURES)}.")


@dataclass(frozen=True)
class Confusion:
    """How often each label (rows) was taken for each (columns)."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    def draw(self, file: Path) -> None:
        """Draw it; the shade is the share of the row. UsageError for an unknown kind of file."""
        require_picture(file)
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        counts = np.array(self.counts)
        share = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
        side = 2.5 + 0.55 * min(len(self.labels), NUMBERED)
        figure = Figure(figsize=(side, side), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        places = range(len(self.labels) if len(self.labels) <= NUMBERED else 0)
        names = [self.labels[place].replace("$", r"\$") for place in places]  # no formulas
        axes.set_xticks(places, names, rotation=45, ha="right")
        axes.set_yticks(places, names)
        axes.set(xlabel="predicted", ylabel="expected")
        for row in places:
            for column in places:
                shade = "white" if share[row, column] > 0.5 else "black"
                text = str(counts[row, column])
                axes.text(column, row, text, ha="center", va="center", color=shade, fontsize=8)
        write_with(file, lambda path: figure.savefig(path, format=file.suffix[1:]))


@dataclass(frozen=True)
class Scores:
    """Figures by name, of a classifier its confusion matrix, and on what the figures rest."""

    metrics: Mapping[str, float]
    confusion: Confusion | None = None
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])


def classification(
    labels: Sequence[str], expected: Sequence[str], predicted: Sequence[str]
) -> Scores:
    """Accuracy, the mean of the classes' F1 (macro F1), and the confusion matrix.

    F1 is the harmonic mean of precision and recall; a class that was neither expected nor
    predicted does not count. UsageError if there is nothing to score or an unknown label.
    """
    if not expected:
        raise UsageError("There are no examples to score.")
    if strange := sorted({*expected, *predicted} - set(labels)):
        raise UsageError(f"'{strange[0]}' is none of the model's classes, {', '.join(labels)}.")
    places = {label: place for place, label in enumerate(labels)}
    counts: NDArray[np.int64] = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(counts, ([places[x] for x in expected], [places[x] for x in predicted]), 1)
    right: NDArray[np.int64] = np.diagonal(counts)
    present: NDArray[Any] = counts.sum(axis=0) + counts.sum(axis=1)
    f1 = 2 * right[present > 0] / present[present > 0]
    metrics = {"accuracy": float(right.sum() / counts.sum()), "macro_f1": float(f1.mean())}
    rows = tuple(tuple(int(n) for n in row) for row in counts)
    return Scores(metrics, Confusion(tuple(labels), rows))
