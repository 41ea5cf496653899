"""Figures of classifiers, against scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics

from cambrian.errors import UsageError
from cambrian.scores import Confusion, classification

LABELS = ("ant", "bee", "cat", "dog")


@pytest.mark.parametrize("seed", range(20))
def test_classification_is_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 60))
    among = LABELS[: rng.integers(1, 5)]  # some classes may not occur
    expected, predicted = (list(rng.choice(among, count)) for _ in range(2))
    found = classification(LABELS, expected, predicted)
    assert found.metrics["accuracy"] == pytest.approx(
        sklearn.metrics.accuracy_score(expected, predicted)
    )
    assert found.metrics["macro_f1"] == pytest.approx(
        sklearn.metrics.f1_score(expected, predicted, average="macro", zero_division=0)
    )
    assert found.confusion is not None
    want = sklearn.metrics.confusion_matrix(expected, predicted, labels=list(LABELS))
    assert np.array_equal(np.array(found.confusion.counts), want)


def test_what_cannot_be_scored() -> None:
    with pytest.raises(UsageError, match="no examples"):
        classification(LABELS, [], [])
    with pytest.raises(UsageError, match="'eel' is none of"):
        classification(LABELS, ["eel"], ["ant"])


@pytest.mark.parametrize(("suffix", "head"), [(".svg", b"<?xml"), (".png", b"\x89PNG")])
def test_a_confusion_matrix_as_a_picture(suffix: str, head: bytes, tmp_path: Path) -> None:
    confusion = Confusion(LABELS[:2], ((7, 1), (0, 0)))
    confusion.draw(tmp_path / f"c{suffix}")
    assert (tmp_path / f"c{suffix}").read_bytes().startswith(head)
    with pytest.raises(UsageError, match=r"\.svg, \.png, \.pdf"):
        confusion.draw(tmp_path / "c.jpeg.zip")
