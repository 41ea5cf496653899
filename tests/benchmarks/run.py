"""Every benchmark, one after the other: python tests/benchmarks/run.py"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RUNS = (
    ("bench_startup.py",),
    ("bench_training.py", "char"),
    ("bench_training.py", "wide"),
    ("bench_training_families.py", "bert"),
    ("bench_training_families.py", "t5"),
    ("bench_shakespeare.py",),
    ("bench_inference.py", "gpt"),
    ("bench_inference.py", "bert"),
    ("bench_inference.py", "t5"),
    ("bench_picture_inference.py", "dcgan"),
    ("bench_picture_inference.py", "vae"),
    ("bench_picture_inference.py", "kl"),
    ("bench_text_memory.py",),
    ("bench_sentiment.py",),
    ("bench_translation.py",),
    ("bench_images.py", "vae"),
    ("bench_images.py", "dcgan"),
    ("bench_images.py", "onnx"),
)

for name, *options in RUNS:
    print(f"\n== {' '.join((name, *options))}", flush=True)
    subprocess.run([sys.executable, str(HERE / name), *options], check=False)
