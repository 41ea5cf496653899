"""Pictures larger than memory allows: encoded and decoded in tiles that overlap.

A tile is blended with the one above and then with the one on its left, by weights that rise
linearly over the overlap, as in `tiled_encode` and `tiled_decode` of diffusers'
models/autoencoders/autoencoder_kl.py. A tile knows nothing of the others, neither in its attention
nor in its norms, so that the result is near what the whole gives but not equal to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cambrian.errors import UsageError

Pixels = NDArray[np.floating[Any]]
Compute = Callable[[Pixels], Pixels]

OVERLAP = 0.25  # of a tile's side


def tiled_encode(encode: Compute, pixels: Pixels, tile: int, overlap: float = OVERLAP) -> Pixels:
    """Pixels (B, C, H, W) to latents (B, L, h, w) by `encode`, in tiles of `tile` pixels a side.

    The reference blends means and log variances alike. A picture no larger than a tile is encoded
    at once. UsageError where tile and overlap do not come to whole latents.
    """
    return _tiled(encode, pixels, tile, overlap)


def tiled_decode(decode: Compute, latents: Pixels, tile: int, overlap: float = OVERLAP) -> Pixels:
    """Latents (B, L, h, w) to pixels (B, C, H, W) by `decode`, in tiles of `tile` latents a side.

    As `tiled_encode`.
    """
    return _tiled(decode, latents, tile, overlap)


def _tiled(compute: Compute, whole: Pixels, tile: int, overlap: float) -> Pixels:
    height, width = whole.shape[2:]
    if max(height, width) <= tile:
        return compute(whole)
    step = int(tile * (1 - overlap))
    if not 0 <= overlap < 1 or step < 1:
        raise UsageError(
            f"A tile of {tile} cannot overlap by {overlap} of itself; use a larger tile, or an "
            "overlap of at least 0 and less than 1."
        )
    bands: list[Pixels] = []
    above: list[Pixels] = []
    for top in range(0, height, step):
        row = [
            np.array(compute(whole[:, :, top : top + tile, left : left + tile]))
            for left in range(0, width, step)
        ]
        extent, limit = _scaled(row[0], whole, tile, step, overlap)
        for number, piece in enumerate(row):
            if above:
                _blend(above[number], piece, extent, axis=2)
            if number:
                _blend(row[number - 1], piece, extent, axis=3)
        bands.append(np.concatenate([piece[:, :, :limit, :limit] for piece in row], axis=3))
        above = row
    return np.concatenate(bands, axis=2)


def _scaled(first: Pixels, whole: Pixels, tile: int, step: int, overlap: float) -> tuple[int, int]:
    """How much of a computed tile is blended, and how much of it is kept."""
    side = tile * first.shape[3] // min(tile, whole.shape[3])
    extent = int(side * overlap)
    limit = side - extent
    if limit * tile != step * side:
        raise UsageError(
            f"A tile of {tile} that overlaps by {overlap} of itself gives {side}, of which "
            f"{limit} would be kept, and these do not meet; use a tile that makes both overlaps "
            "whole numbers."
        )
    return extent, limit


def _blend(before: Pixels, after: Pixels, extent: int, axis: int) -> None:
    """Fade in the first `extent` lines of `after` from the last ones of `before`, in place."""
    extent = min(before.shape[axis], after.shape[axis], extent)
    if not extent:
        return
    start, end = (np.moveaxis(array, axis, -1) for array in (after, before))  # views
    weights = (np.arange(extent) / extent).astype(after.dtype)
    start[..., :extent] = end[..., -extent:] * (1 - weights) + start[..., :extent] * weights
