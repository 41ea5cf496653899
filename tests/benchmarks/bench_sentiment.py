"""A classifier of film reviews from nothing but the reviews: pretraining, then fine-tuning.

    python tests/benchmarks/bench_sentiment.py [--seeds 3] [--folder runs]

rt-polarity (Pang and Lee 2005), one sentence a line. A tenth of the sentences is held out by a hash
of their text, the same ones in both phases: neither sees them. The masked language model is trained
once, the classifier once a seed; its accuracy is that of the last step, with nothing chosen by it.
Kim 2014 gives 76.1 % for a CNN with random word vectors (10-fold cross-validation).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from machine import describe_machine

DATA = Path(__file__).parents[3] / "shared" / "data" / "sentiment"
FILES = [str(DATA / f"rt-polarity.{name}") for name in ("pos", "neg")]
MODEL = ["num_hidden_layers=3", "hidden_size=128", "num_attention_heads=4",
         "intermediate_size=512", "max_position_embeddings=80"]  # fmt: skip
PRETRAINING = [*MODEL, "rows=lines", "data.vocab_size=8000", "validation_fraction=0.1",
               "steps=2500", "batch_size=64", "evaluate_every=250", "optimizer.lr=3e-3",
               "muon_lr=0.01", "warmup_steps=100"]  # fmt: skip
FINE_TUNING = ["steps=400", "batch_size=64", "evaluate_every=100", "optimizer.lr=1e-3",
               "warmup_steps=60", "min_lr_ratio=0.0", "hidden_dropout_prob=0.3",
               "checkpoint_every=400"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"skipped: the reviews are not at {DATA}")
    import cambrian
    from cambrian.cli.train import prepare_process

    prepare_process()
    print(describe_machine("torch"))
    with tempfile.TemporaryDirectory() as scratch:
        root = given.folder or Path(scratch)
        start = time.perf_counter()
        base = cambrian.train(
            "bert", root / "pretrained", data=FILES, settings=PRETRAINING, force=True
        )
        seconds = time.perf_counter() - start
        figures = {k: base.metrics[f"validation_{k}"] for k in ("loss", "accuracy", "perplexity")}
        print(f"pretraining {seconds:.0f} s:", {k: round(v, 3) for k, v in figures.items()})
        found: list[float] = []
        for seed in range(given.seeds):
            start = time.perf_counter()
            run = cambrian.train(
                "bert-classifier",
                root / f"classifier-{seed}",
                base=root / "pretrained",
                data=FILES,
                settings=[*FINE_TUNING, f"seed={seed}"],
                force=True,
            )
            accuracy = run.metrics["validation_accuracy"]
            found.append(accuracy)
            print(f"seed {seed}: {time.perf_counter() - start:.0f} s, accuracy {accuracy:.4f}")
        print(f"mean {statistics.mean(found):.4f} over {len(found)} seeds (Kim 2014: 0.761)")


if __name__ == "__main__":
    main()
