"""Distances of sets of features, against SciPy, closed forms and loops that spell them out."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from cambrian import fidelity
from cambrian.errors import UsageError
from cambrian.fidelity import Features, frechet_distance, kernel_distance, precision_recall


def normal(seed: int, count: int, size: int, shift: float = 0.0, scale: float = 1.0) -> Features:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, size)) * scale + shift


def mixed(seed: int, count: int, size: int) -> Features:
    """Features that depend on each other."""
    return normal(seed, count, size) @ normal(seed + 1, size, size) + normal(seed + 2, 1, size)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_frechet_is_the_formula_with_scipys_root(size: int) -> None:
    one, other = mixed(1, 40, size), mixed(5, 60, size)
    first, second = (np.cov(each, rowvar=False).reshape(size, size) for each in (one, other))
    root = np.real(np.asarray(scipy.linalg.sqrtm(first @ second)))
    want = np.sum((one.mean(0) - other.mean(0)) ** 2) + np.trace(first + second - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(float(want), rel=1e-9)
    assert frechet_distance(other, one) == pytest.approx(float(want), rel=1e-9)


def test_frechet_of_diagonal_gaussians_has_a_closed_form() -> None:
    """Sets whose sample moments are exact: independent columns of plus and minus one."""
    signs = scipy.linalg.hadamard(16)[:, 1:4].astype(np.float64)  # mean 0, mutually orthogonal
    signs *= np.sqrt(15 / 16)  # so that the unbiased variance is 1
    means = np.array([[0.0, 1.0, -2.0], [3.0, 1.0, 0.5]])
    deviations = np.array([[1.0, 2.0, 0.5], [0.25, 2.0, 4.0]])
    one, other = (signs * s + m for m, s in zip(means, deviations, strict=True))
    want = np.square(means[0] - means[1]).sum() + np.square(deviations[0] - deviations[1]).sum()
    assert frechet_distance(one, other) == pytest.approx(want, rel=1e-10)


def test_frechet_of_equal_sets_is_zero_even_with_fewer_rows_than_features() -> None:
    for rows, size in ((50, 6), (4, 30)):
        same = mixed(3, rows, size)
        scale = float(np.trace(np.cov(same, rowvar=False)))
        assert abs(frechet_distance(same, same[::-1])) < 1e-6 * scale
        assert frechet_distance(same, same + 1) == pytest.approx(size, abs=1e-6 * scale)


def naive_kernel_distance(one: Features, other: Features) -> float:
    def kernel(x: Features, y: Features) -> float:
        return float((np.dot(x, y) / len(x) + 1) ** 3)

    def within(rows: Features) -> float:
        found = [kernel(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]
        return sum(found) / len(found)

    across = [kernel(x, y) for x in one for y in other]
    return within(one) + within(other) - 2 * sum(across) / len(across)


def test_kernel_distance_is_the_double_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = mixed(1, 13, 5), mixed(8, 9, 5)
    assert kernel_distance(one, other) == pytest.approx(naive_kernel_distance(one, other))
    monkeypatch.setattr(fidelity, "BLOCK", 4)  # rows of several blocks count alike
    assert kernel_distance(one, other) == pytest.approx(naive_kernel_distance(one, other))
    single = one.astype(np.float32)
    assert kernel_distance(single, other) == pytest.approx(kernel_distance(one, other), rel=1e-5)


def test_kernel_distance_is_unbiased() -> None:
    """Its mean over draws is 0 for one distribution; of another it is far above."""
    same = [kernel_distance(normal(n, 20, 4), normal(n + 1000, 20, 4)) for n in range(300)]
    error = float(np.std(same) / np.sqrt(len(same)))
    assert abs(np.mean(same)) < 4 * error and min(same) < 0
    apart = [kernel_distance(normal(n, 20, 4), normal(n + 1000, 20, 4, 1.0)) for n in range(20)]
    assert np.mean(apart) > 20 * error and min(apart) > 0


def naive_share(things: Features, members: Features, neighbours: int) -> float:
    """How many of `things` lie in the ball of some member, as the paper's equation 1 says it."""
    radii = [
        sorted(float(np.linalg.norm(m - other)) for other in members)[neighbours] for m in members
    ]
    inside = [
        any(np.linalg.norm(t - m) <= r for m, r in zip(members, radii, strict=True)) for t in things
    ]
    return sum(inside) / len(inside)


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_precision_and_recall_are_the_loops(
    neighbours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = normal(1, 37, 3), normal(2, 29, 3, 0.8, 1.3)
    want = naive_share(made, real, neighbours), naive_share(real, made, neighbours)
    assert 0 < want[0] < 1 and 0 < want[1] < 1 and want[0] != want[1]
    assert precision_recall(real, made, neighbours) == pytest.approx(want)
    monkeypatch.setattr(fidelity, "BLOCK", 8)  # rows of several blocks count alike
    assert precision_recall(real, made, neighbours) == pytest.approx(want)


def test_dropped_modes_lower_recall_and_outliers_lower_precision() -> None:
    modes = [normal(n, 60, 2, shift=10.0 * n) for n in range(3)]
    again = [normal(n + 10, 60, 2, shift=10.0 * n) for n in range(3)]
    real = np.concatenate(modes)
    good = precision_recall(real, np.concatenate(again))
    assert min(good) > 0.85
    dropped = precision_recall(real, again[0])
    assert dropped[0] > 0.85 and dropped[1] < 0.4
    strays = normal(50, 60, 2, shift=500.0, scale=100.0)
    strayed = precision_recall(real, np.concatenate([*again, strays]))
    assert strayed[0] == pytest.approx(good[0] * 0.75, abs=0.02)
    assert strayed[1] >= good[1]


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance, precision_recall])
def test_one_picture_is_too_few(measure: object) -> None:
    assert callable(measure)
    for sides in ((normal(1, 1, 3), normal(2, 5, 3)), (normal(2, 5, 3), normal(1, 1, 3))):
        with pytest.raises(UsageError, match="two of each"):
            measure(*sides)
