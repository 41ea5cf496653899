"""English to German from Multi30k's 29,000 pairs alone, on this machine.

    python tests/benchmarks/bench_translation.py [--steps 6000] [--folder runs/mt]

Trains a T5 of 2 x 4 layers, 128 wide, from scratch, exports it, and scores the test set of 2016 by
beam search in ONNX Runtime: BLEU of the text as it is (sacrebleu's default, cased).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from machine import describe_machine

DATA = Path(__file__).parents[3] / "shared" / "data" / "translation"
SETTINGS = ["d_model=128", "d_kv=32", "d_ff=512", "num_layers=4", "num_heads=4", "n_positions=64",
            "dropout_rate=0.15", "label_smoothing=0.1", "batch_size=128", "evaluate_every=500",
            "checkpoint_every=500", "optimizer.lr=0.08", "muon_lr=0.01", "warmup_steps=200",
            "data.vocab_size=8000", "data.prefix=translate English to German: "]  # fmt: skip


def pair(split: str) -> list[str]:
    """A split's two files, sources first."""
    return [str(DATA / f"multi30k_{split}.{language}.gz") for language in ("en", "de")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"skipped: the pairs are not at {DATA}")
    import cambrian
    from cambrian.cli.train import prepare_process

    prepare_process()
    print(describe_machine("torch", "sacrebleu", "onnxruntime-gpu"))
    with tempfile.TemporaryDirectory() as scratch:
        out = given.folder or Path(scratch) / "mt"
        start = time.perf_counter()
        settings = [*SETTINGS, f"steps={given.steps}"]
        run = cambrian.train("t5", out, data=pair("train"), validation=pair("val"),
                             settings=settings, force=True)  # fmt: skip
        print(f"trained {run.step} steps in {time.perf_counter() - start:.0f} s")
        exported = out.with_name(f"{out.name}-onnx")
        cambrian.export(out, exported, force=True)
        for beams in (1, 5):
            start = time.perf_counter()
            scores = cambrian.evaluate(
                exported, data=pair("test_2016_flickr"), num_beams=beams, max_new_tokens=60
            )
            figures = {name: round(value, 3) for name, value in scores.metrics.items()}
            print(f"{beams} beams, {time.perf_counter() - start:.0f} s: {figures}")


if __name__ == "__main__":
    main()
