"""What is particular to this model; that it keeps Cambrian's contracts, `--cambrian` checks."""

from __future__ import annotations

from pathlib import Path

import cambrian
import numpy as np
import pytest
from cambrian_novel.data import Scaler, spirals


def test_it_learns_the_spirals(tmp_path: Path) -> None:
    cambrian.train("novel", tmp_path / "model", settings=["steps=300", "warmup_steps=10"])
    assert cambrian.evaluate(tmp_path / "model").metrics["accuracy"] > 0.95


def test_features_are_scaled() -> None:
    points, labels = spirals()
    scaled = Scaler(points.mean(axis=0).tolist(), points.std(axis=0).tolist())(points)
    assert np.abs(scaled.mean(axis=0)).max() < 1e-5
    assert np.abs(scaled.std(axis=0) - 1).max() < 1e-5
    assert labels.tolist().count(0) == labels.tolist().count(1) == len(points) // 2


@pytest.mark.parametrize("text", ["1,2\n", "a,b,c\nd,e,f\n", ""])
def test_what_is_no_file_of_points_is_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text(text)
    with pytest.raises(cambrian.UsageError):
        cambrian.train("novel", tmp_path / "model", data=[str(tmp_path / "points.csv")])
