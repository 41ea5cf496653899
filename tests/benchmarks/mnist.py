"""MNIST's 10,000 test digits in three parts by a fixed seed, as .npz files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "images"
PARTS = {"train": 8000, "validation": 1000, "test": 1000}


def write_parts(folder: Path) -> dict[str, Path]:
    """Write the parts; SystemExit with the reason where the digits are not here."""
    from cambrian.data.image_sources import read_images

    images = SHARED / "mnist-t10k-images-idx3-ubyte.gz"
    if not images.is_file():
        raise SystemExit(f"skipped: {images} is not here")
    whole = read_images([str(images)], lambda picture: np.asarray(picture)[None], {})
    assert whole.labels is not None
    order = np.random.Generator(np.random.Philox(0)).permutation(len(whole))
    labels = np.array(whole.labels).astype(np.int64)
    files: dict[str, Path] = {}
    start = 0
    for name, count in PARTS.items():
        rows = order[start : start + count]
        files[name] = folder / f"{name}.npz"
        np.savez(files[name], images=whole.pixels[rows, 0], labels=labels[rows])
        start += count
    return files
