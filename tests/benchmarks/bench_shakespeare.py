"""Validation loss on tinyshakespeare, character level, at nanoGPT's published CPU setting.

    python tests/benchmarks/bench_shakespeare.py [FILE] [--seeds 3]

4 layers, 4 heads, 128 wide, block 64, batch 12, 2,000 steps, no dropout; the first 90 % of the
text is trained on and the rest held out, as nanoGPT does. Two recipes: nanoGPT's own (AdamW,
cosine), for which its README states 1.88, and the one that `gpt-char` ships. The whole held-out
text is measured, in float32. With --larger-steps a larger model is trained as well.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from machine import describe_machine

import cambrian
from cambrian.allocator import keep_memory

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "text" / "tinyshakespeare.txt"
PUBLISHED = (
    "name=adamw",
    "lr=1e-3",
    "betas=[0.9, 0.99]",
    "schedule=cosine",
    "warmup_steps=100",
    "min_lr_ratio=0.1",
)
LARGER = (
    "n_embd=256",
    "n_head=8",
    "n_positions=128",
    "resid_pdrop=0.05",
    "embd_pdrop=0.05",
    "attn_pdrop=0.0",
    "batch_size=24",
    "weight_decay=0.2",
)


def run(folder: Path, name: str, settings: list[str], keep: Path | None = None) -> None:
    """Train once and print the loss over the whole held-out text."""
    start = time.perf_counter()
    out = keep or folder / name.replace(" ", "-")
    result = cambrian.train(
        "gpt-char",
        out,
        data=[str(folder / "train.txt")],
        validation=[str(folder / "held-out.txt")],
        settings=["clean=false", "deduplicate=false", "evaluate_every=500", *settings],
        force=True,
    )
    wall = time.perf_counter() - start
    loss = cambrian.evaluate(out).metrics["loss"]
    print(f"{name:34}{loss:8.4f}{wall:8.0f} s  {result.metrics['precision']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=SHARED)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--larger-steps", type=int, default=0, help="also train 256 wide so long")
    parser.add_argument("--keep", type=Path, help="folder for the shipped recipe's first model")
    given = parser.parse_args()
    if not given.file.is_file():
        raise SystemExit(f"skipped: {given.file} is not here")
    keep_memory()
    print(describe_machine("torch"))
    text = given.file.read_text("utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cut = int(0.9 * len(text))
        (folder / "train.txt").write_text(text[:cut])
        (folder / "held-out.txt").write_text(text[cut:])
        print(f"{'recipe':34}{'loss':>8}{'wall':>8}")
        run(folder, "published", list(PUBLISHED))
        for seed in range(given.seeds):
            keep = given.keep if seed == 0 else None
            run(folder, f"shipped seed {seed}", [f"seed={seed}"], keep)
        if given.larger_steps:
            settings = [*LARGER, f"steps={given.larger_steps}"]
            run(folder, f"larger {given.larger_steps} steps", settings)


if __name__ == "__main__":
    main()
