"""How like a set of real things a set of generated ones is, by their features. Numpy alone.

The distances are those known as FID and KID, but over whatever features they are given: figures
compare only where extractor, resizer and numbers of pictures are the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cambrian.errors import UsageError

Features = NDArray[np.floating[Any]]
BLOCK = 1000  # rows whose distances to all others are held at once


def frechet_distance(real: Features, made: Features) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of the two sets' means and covariances.

    Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", equation 6; features (N, F).
    It is too high for few pictures, most of all for fewer than features. UsageError below two.
    """
    real, made = _checked(real, made)
    distance = float(np.square(real.mean(0) - made.mean(0)).sum())
    # C = R'R of each set. tr (C1 C2)^(1/2) is then the sum of the singular values of R1 R2', which
    # has no more rows and columns than there are things or features.
    first, second = (
        np.asarray(np.linalg.qr((each - each.mean(0)) / np.sqrt(len(each) - 1), mode="r"))
        for each in (real, made)
    )
    cross = float(np.linalg.svd(first @ second.T, compute_uv=False).sum())
    return distance + float(np.square(first).sum() + np.square(second).sum()) - 2 * cross


def kernel_distance(real: Features, made: Features) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy under (x.y / F + 1)^3.

    Binkowski et al. 2018, "Demystifying MMD GANs", section 3.1. It may be below 0.
    """
    real, made = _checked(real, made)

    def total(one: Features, other: Features) -> float:
        """The kernel's sum over all pairs."""
        blocks = (one[start : start + BLOCK] for start in range(0, len(one), BLOCK))
        return sum(float(((block @ other.T / one.shape[1] + 1) ** 3).sum()) for block in blocks)

    def within(each: Features) -> float:
        own = float(((np.square(each).sum(1) / each.shape[1] + 1) ** 3).sum())
        return (total(each, each) - own) / (len(each) * (len(each) - 1))

    return within(real) + within(made) - 2 * total(real, made) / (len(real) * len(made))


def precision_recall(real: Features, made: Features, neighbours: int = 3) -> tuple[float, float]:
    """The share of made things among the real, and of real ones among the made.

    A thing is among a set if it is no farther from some member than that member's `neighbours`-th
    nearest in the set (Kynkaanniemi et al. 2019, "Improved Precision and Recall", equation 1).
    """
    real, made = _checked(real, made)
    return _among(made, real, neighbours), _among(real, made, neighbours)


def _checked(real: Features, made: Features) -> tuple[Features, Features]:
    if min(len(real), len(made)) < 2:
        raise UsageError("Comparing generated with real pictures takes two of each at least.")
    return real.astype(np.float64), made.astype(np.float64)


def _among(things: Features, members: Features, neighbours: int) -> float:
    rank = min(neighbours, len(members) - 1)
    radii = np.concatenate(
        [
            np.partition(_squared_distances(members[start : start + BLOCK], members), rank, axis=1)
            [:, rank]
            for start in range(0, len(members), BLOCK)
        ]
    )  # fmt: skip
    found = [
        (_squared_distances(things[start : start + BLOCK], members) <= radii).any(axis=1)
        for start in range(0, len(things), BLOCK)
    ]
    return float(np.concatenate(found).mean())


def _squared_distances(one: Features, other: Features) -> Features:
    squares = np.square(one).sum(1)[:, None] + np.square(other).sum(1) - 2 * one @ other.T
    return squares.clip(min=0)
