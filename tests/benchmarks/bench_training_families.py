"""Training throughput of BERT and T5 beside transformers' own models under its Trainer.

    python tests/benchmarks/bench_training_families.py [bert|t5] [--rounds 3]

"bert" is a masked-LM step at BERT base's width, 4 layers, 16 rows of 128 tokens; "t5" a step at
T5 small's width, 2 + 2 layers, 32 rows of 64 tokens to 64. Rows are of unequal length, between half
and all of it, with the same padding and labels for everyone. Every contender runs in a process of
its own, as its users run it: Cambrian with the memory settings of its command line and BERT's
vocabulary head at labelled positions alone, transformers with neither, and a last contender with
those memory settings. Reported is the median time of the steps after the first ones, ours with the
making of batches, the Trainer's without.
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine

CONTENDERS = (
    "transformers Trainer float32",
    "transformers Trainer bfloat16",
    "transformers Trainer bfloat16, kept memory",
    "cambrian float32",
    "cambrian float32, medium",
    "cambrian bfloat16",
)
ROWS = {"bert": 16, "t5": 32}
LENGTH = {"bert": 128, "t5": 64}
WIDE_BERT = {"num_hidden_layers": 4}  # of BERT base: 768 wide, 12 heads, 3072 inside, 30522 tokens
SMALL_T5 = {"num_layers": 2}  # of T5 small: 512 wide, 8 heads of 64, 2048 inside, 32128 tokens
IGNORED = -100


def batch(family: str, number: int) -> dict[str, Any]:
    """The rows of one step; 15 % of BERT's tokens are to be predicted."""
    generator = np.random.Generator(np.random.Philox(number))
    rows, length = ROWS[family], LENGTH[family]
    shape = rows, length
    lengths = generator.integers(length // 2, length + 1, size=rows)
    lengths[0] = length
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    ids = np.where(mask == 1, generator.integers(1000, 30000, size=shape), 0)
    if family == "bert":
        chosen = (generator.random(shape) < 0.15) & (mask == 1)
        return {
            "input_ids": np.where(chosen, 103, ids),
            "attention_mask": mask,
            "labels": np.where(chosen, ids, IGNORED),
        }
    targets = generator.integers(1000, 30000, size=shape)
    ends = generator.integers(length // 2, length + 1, size=(rows, 1))
    labels = np.where(np.arange(length) < ends, targets, IGNORED)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class Batches:
    """The steps' rows, endlessly."""

    def __init__(self, family: str) -> None:
        self.family = family

    def __len__(self) -> int:
        return 1000

    def batch(self, index: int) -> dict[str, Any]:
        return batch(self.family, index)


def time_trainer(family: str, steps: int, bfloat16: bool) -> list[float]:
    """transformers' Trainer with its defaults, on its own model."""
    import torch
    import transformers

    rows = ROWS[family]

    class Data(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return rows * (steps + 1)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            step, row = divmod(index, rows)
            return {k: torch.from_numpy(v[row]) for k, v in batch(family, step).items()}

    class Clock(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.starts: list[float] = []
            self.times: list[float] = []

        def on_step_begin(self, *args: object, **extra: object) -> None:
            self.starts.append(time.perf_counter())

        def on_step_end(self, *args: object, **extra: object) -> None:
            self.times.append(time.perf_counter() - self.starts[-1])

    if family == "bert":
        model: Any = transformers.BertForMaskedLM(transformers.BertConfig(**WIDE_BERT))
    else:
        model = transformers.T5ForConditionalGeneration(
            transformers.T5Config(**SMALL_T5, decoder_start_token_id=0)
        )
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=rows,
            bf16=bfloat16,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        transformers.Trainer(model, arguments, train_dataset=Data(), callbacks=[clock]).train()
    return clock.times


def time_cambrian(family: str, steps: int, train: Mapping[str, Any]) -> list[float]:
    """Cambrian's own loop, making its batches inside the step, logging every step."""
    from cambrian.config import Recipe, TrainConfig
    from cambrian.data import Prepared
    from cambrian.training import Job
    from cambrian.training.loop import LoopTrainer

    if family == "bert":
        from cambrian_bert.config import BertConfig
        from cambrian_bert.model import BertForMaskedLM

        config: Any = BertConfig(**WIDE_BERT)
        model: Any = BertForMaskedLM(config)
    else:
        from cambrian_t5.config import T5Config
        from cambrian_t5.model import T5

        config = T5Config(**SMALL_T5)
        model = T5(config)
    settings = TrainConfig(
        steps=steps,
        batch_size=ROWS[family],
        evaluate_every=0,
        checkpoint_every=steps,
        log_every=1,
        device="cpu",
        **train,
    )
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            model=model,
            data=Prepared(
                processor=None,  # pyright: ignore[reportArgumentType]
                config=config,
                train=Batches(family),
                validation=None,
            ),
            recipe=Recipe(train=settings),
            folder=Path(folder),
            publish=lambda model: None,
            report=lambda event: times.extend(
                [event["seconds_per_step"]] if "seconds_per_step" in event else []
            ),
        )
        LoopTrainer().fit(job)
    return times


def contend(name: str, family: str, steps: int) -> list[float]:
    """Seconds of each step of one contender."""
    from cambrian.allocator import keep_memory

    maker, _, variant = name.partition(" ")
    if maker == "cambrian" or "kept memory" in variant:
        keep_memory()  # as `cambrian train` does
    if maker == "transformers":
        return time_trainer(family, steps, bfloat16="bfloat16" in variant)
    settings = {"precision": variant.split(",")[0]}
    if "medium" in variant:
        settings["matmul"] = "medium"
    return time_cambrian(family, steps, settings)


def child(name: str, family: str, steps: int) -> dict[str, float]:
    """Run one contender in a process of its own."""
    kept = name.startswith("cambrian") or "kept memory" in name
    extra = {"THP_MEM_ALLOC_ENABLE": "1"} if kept else {}
    command = [sys.executable, __file__, family, "--steps", str(steps), "--contender", name]
    done = subprocess.run(
        command, env={**os.environ, **extra}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", nargs="?", default="bert", choices=ROWS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--contender")
    given = parser.parse_args()
    if given.contender:
        times = contend(given.contender, given.family, given.steps)[3:]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": statistics.median(times), "rss_mib": peak}))
        return
    print(describe_machine("torch", "transformers", "accelerate"))
    print(f"{given.family}: {given.steps} steps, {given.rounds} rounds\n")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(given.rounds):
        for name in CONTENDERS:
            found[name].append(child(name, given.family, given.steps))
    medians = {n: statistics.median(r["seconds"] for r in rounds) for n, rounds in found.items()}
    single, half = (medians[name] for name in CONTENDERS[:2])
    print(f"{'':42}{'ms/step':>9}{'spread':>15}{'x Trainer f32':>15}{'x bf16':>8}{'MiB':>7}")
    for name, rounds in found.items():
        seconds = [r["seconds"] * 1e3 for r in rounds]
        spread = f"{min(seconds):.0f}-{max(seconds):.0f}"
        memory = statistics.median(r["rss_mib"] for r in rounds)
        print(
            f"{name:42}{medians[name] * 1e3:9.0f}{spread:>15}"
            f"{single / medians[name]:15.2f}{half / medians[name]:8.2f}{memory:7.0f}"
        )


if __name__ == "__main__":
    main()
