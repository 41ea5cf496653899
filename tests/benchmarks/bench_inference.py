"""Greedy decoding of GPT-2 small (124 M, random weights) beside transformers, on the same weights.

    python tests/benchmarks/bench_inference.py [--rounds 3] [--prompt 128] [--new 128]

Exports the model through Cambrian, then runs every contender in a process of its own, in turn:
milliseconds to the first token, tokens a second after it, and peak memory; medians over rounds.
All must generate the same tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine

CONTENDERS = ("transformers", "transformers bfloat16", "cambrian torch", "cambrian onnx")


def make(folder: Path) -> None:
    """Write the model in the Hub's layout, with a tokenizer, and export it."""
    import torch
    import transformers

    import cambrian
    from cambrian.data.tokenizer import Tokenizer

    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(eos_token_id=None))
    model.save_pretrained(folder / "model")
    Tokenizer.train("bpe", ["a few words to make a tokenizer of"], 300).save(folder / "model")
    cambrian.export(folder / "model", folder / "onnx")


def generate_transformers(folder: Path, ids: list[int], new: int, dtype: str) -> dict[str, Any]:
    """transformers' own forward pass with its cache, eager, without generate()'s overhead."""
    import torch
    import transformers

    model = transformers.GPT2LMHeadModel.from_pretrained(
        folder / "model", dtype=getattr(torch, dtype)
    ).eval()

    def run() -> tuple[list[int], float, float]:
        start = time.perf_counter()
        with torch.inference_mode():
            found = model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
            tokens = [int(found.logits[0, -1].argmax())]
            first = time.perf_counter() - start
            for _ in range(new - 1):
                found = model(
                    torch.tensor([tokens[-1:]]),
                    past_key_values=found.past_key_values,
                    use_cache=True,
                )
                tokens.append(int(found.logits[0, -1].argmax()))
        return tokens, first, time.perf_counter() - start

    return timed(run, new)


def generate_cambrian(folder: Path, ids: list[int], new: int) -> dict[str, Any]:
    """The pipeline's own decoding loop over a session."""
    import cambrian
    from cambrian.generation.config import GenerationConfig
    from cambrian.generation.sampling import continuations

    pipeline: Any = cambrian.load(folder)
    options = GenerationConfig(max_new_tokens=new)

    def run() -> tuple[list[int], float, float]:
        start, first, tokens = time.perf_counter(), 0.0, list[int]()
        for chosen in continuations(pipeline._decoding([ids], options), options):
            first = first or time.perf_counter() - start
            tokens.append(int(chosen[0]))
            if len(tokens) == new:
                break
        return tokens, first, time.perf_counter() - start

    return {**timed(run, new), "provider": pipeline.session.provider}


def timed(run: Any, new: int) -> dict[str, Any]:
    """The median of three runs after one that warms up."""
    run()
    runs = [run() for _ in range(3)]
    return {
        "tokens": runs[0][0],
        "first": statistics.median(first for _, first, _ in runs),
        "rate": statistics.median((new - 1) / (total - first) for _, first, total in runs),
        "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def contend(name: str, folder: Path, prompt: int, new: int) -> dict[str, Any]:
    """One contender's figures."""
    ids = np.random.default_rng(0).integers(50257, size=prompt).tolist()
    if name.startswith("transformers"):
        return generate_transformers(
            folder, ids, new, "bfloat16" if "bfloat16" in name else "float32"
        )
    return generate_cambrian(folder / ("onnx" if name.endswith("onnx") else "model"), ids, new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--contender")
    given = parser.parse_args()
    if given.contender:
        print(json.dumps(contend(given.contender, given.folder, given.prompt, given.new)))
        return
    print(describe_machine("torch", "transformers", "onnxruntime-gpu"))
    print(f"GPT-2 small, batch 1, prompt {given.prompt}, {given.new} new tokens\n")
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        if not (folder / "onnx").is_dir():
            start = time.perf_counter()
            make(folder)
            size = sum(f.stat().st_size for f in (folder / "onnx").glob("model.onnx*")) / 1e6
            print(f"export and parity sweep {time.perf_counter() - start:.0f} s, {size:.0f} MB\n")
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
        for _ in range(given.rounds):
            for name in CONTENDERS:
                options = ["--folder", str(folder), "--contender", name]
                options += ["--prompt", str(given.prompt), "--new", str(given.new)]
                done = subprocess.run(
                    [sys.executable, __file__, *options],
                    capture_output=True,
                    text=True,
                    check=True,
                    env={**os.environ, "HF_HUB_OFFLINE": "1"},
                )
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
    show(found)


def show(found: dict[str, list[dict[str, Any]]]) -> None:
    """The table."""
    base = statistics.median(r["rate"] for r in found["transformers"])
    same = found["transformers"][0]["tokens"]
    print(f"{'':24}{'first ms':>10}{'tokens/s':>10}{'best':>8}{'ratio':>8}{'MiB':>7}  tokens equal")
    for name, rounds in found.items():
        rate = statistics.median(r["rate"] for r in rounds)
        agree = sum(a == b for a, b in zip(same, rounds[0]["tokens"], strict=True))
        print(
            f"{name:24}{statistics.median(r['first'] for r in rounds) * 1e3:10.1f}{rate:10.1f}"
            f"{max(r['rate'] for r in rounds):8.1f}{rate / base:8.2f}"
            f"{statistics.median(r['mib'] for r in rounds):7.0f}  {agree}/{len(same)}"
            f"  {rounds[0].get('provider', '')}"
        )


if __name__ == "__main__":
    main()
