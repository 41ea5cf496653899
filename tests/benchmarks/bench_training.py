"""Training throughput beside a plain loop and transformers' Trainer, on the same model and data.

    python tests/benchmarks/bench_training.py [char|wide] [--rounds 3]

Every contender runs in a process of its own, in turn, and reports the median time of its steps
after the first ones; the table gives the median over rounds and the ratios. "char" is nanoGPT's
published CPU setting, "wide" is GPT-2 small's width with four layers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from machine import describe_machine


class Setting(NamedTuple):
    n_layer: int
    n_head: int
    n_embd: int
    block: int
    batch: int
    vocab: int
    steps: int


SETTINGS = {
    "char": Setting(4, 4, 128, 64, 12, 65, 200),
    "wide": Setting(4, 12, 768, 256, 4, 50257, 10),
}
CONTENDERS = (
    "plain float32",
    "plain float32, kept memory",
    "transformers Trainer float32",
    "transformers Trainer bfloat16",
    "cambrian float32",
    "cambrian float32, medium",
    "cambrian bfloat16",
    "cambrian bfloat16, muon",
)
WARM = 3  # steps not counted, at least


def plain_step(setting: Setting) -> Callable[[], None]:
    """GPT-2 and its step as one writes them down: eager, float32, fused attention and AdamW."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    width, heads = setting.n_embd, setting.n_head

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch, length, _ = x.shape
            parts = self.qkv(self.ln_1(x)).view(batch, length, 3, heads, -1)
            q, k, v = parts.permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
            return x + self.down(F.gelu(self.up(self.ln_2(x)), approximate="tanh"))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte = nn.Embedding(setting.vocab, width)
            self.wpe = nn.Embedding(setting.block, width)
            self.h = nn.Sequential(*(Block() for _ in range(setting.n_layer)))
            self.ln_f = nn.LayerNorm(width)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
            return F.linear(self.ln_f(self.h(x)), self.wte.weight)

    net = Net()
    groups = [
        {"params": [p for p in net.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in net.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
    shape = setting.batch, setting.block

    def step() -> None:
        ids, labels = torch.randint(setting.vocab, shape), torch.randint(setting.vocab, shape)
        loss = F.cross_entropy(net(ids).flatten(0, 1), labels.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def time_plain(setting: Setting) -> list[float]:
    step = plain_step(setting)
    times: list[float] = []
    for _ in range(setting.steps):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times


def time_trainer(setting: Setting, bfloat16: bool) -> list[float]:
    """transformers' Trainer with its defaults, on its own GPT-2, fed from memory."""
    import numpy as np
    import torch
    import transformers

    class Data(torch.utils.data.Dataset[Any]):
        ids = np.random.default_rng(0).integers(setting.vocab, size=(4096, setting.block))

        def __len__(self) -> int:
            return len(self.ids)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            row = torch.from_numpy(self.ids[index])
            return {"input_ids": row, "labels": row}

    class Clock(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *args: object, **extra: object) -> None:
            self.ends.append(time.perf_counter())

    config = transformers.GPT2Config(
        vocab_size=setting.vocab,
        n_positions=setting.block,
        n_embd=setting.n_embd,
        n_layer=setting.n_layer,
        n_head=setting.n_head,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=setting.steps,
            per_device_train_batch_size=setting.batch,
            bf16=bfloat16,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(
            transformers.GPT2LMHeadModel(config), arguments, train_dataset=Data(), callbacks=[clock]
        )
        trainer.train()
    return [b - a for a, b in zip(clock.ends, clock.ends[1:], strict=False)]


def time_cambrian(setting: Setting, train: Mapping[str, Any], optimizer: str) -> list[float]:
    """Cambrian's own loop, logging as it does by default."""
    import numpy as np

    from cambrian.config import OptimizerConfig, Recipe, TrainConfig
    from cambrian.data import Prepared
    from cambrian.data.windows import Windows
    from cambrian.training import Job
    from cambrian.training.loop import LoopTrainer
    from cambrian_gpt.config import GPTConfig
    from cambrian_gpt.model import GPT

    config = GPTConfig(
        vocab_size=setting.vocab,
        n_positions=setting.block,
        n_embd=setting.n_embd,
        n_layer=setting.n_layer,
        n_head=setting.n_head,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    tokens = np.random.default_rng(0).integers(setting.vocab, size=1 << 20).astype(np.uint16)
    every = 10 if setting.steps >= 100 else 1
    recipe = Recipe(
        train=TrainConfig(
            steps=setting.steps,
            batch_size=setting.batch,
            evaluate_every=0,
            checkpoint_every=setting.steps,
            log_every=every,
            device="cpu",
            **train,
        ),
        optimizer=OptimizerConfig(name=optimizer),  # pyright: ignore[reportArgumentType]
    )
    windows = Windows(tokens, length=setting.block, batch_size=setting.batch, seed=0)
    times: list[float] = []

    def report(event: Mapping[str, Any]) -> None:
        if "seconds_per_step" in event:
            times.extend([event["seconds_per_step"]] * every)

    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            model=GPT(config),
            data=Prepared(
                processor=None,  # pyright: ignore[reportArgumentType]
                config=config,
                train=windows,
                validation=None,
                unit="tokens",
                units_per_row=setting.block,
            ),
            recipe=recipe,
            folder=Path(folder),
            publish=lambda model: None,
            report=report,
        )
        LoopTrainer().fit(job)
    return times


def contend(name: str, setting: Setting) -> list[float]:
    """Seconds of each step of one contender."""
    from cambrian.allocator import keep_memory

    family, _, variant = name.partition(" ")
    if family == "transformers":
        return time_trainer(setting, bfloat16="bfloat16" in variant)
    if family == "plain":
        if "kept memory" in variant:
            keep_memory()
        return time_plain(setting)
    keep_memory()  # as `cambrian train` does
    settings: dict[str, Any] = {"precision": variant.split(",")[0]}
    if "medium" in variant:
        settings["matmul"] = "medium"
    return time_cambrian(setting, settings, "muon" if "muon" in variant else "adamw")


def child(name: str, setting_name: str) -> dict[str, float]:
    """Run one contender in a process of its own."""
    ours = name.startswith("cambrian") or "kept memory" in name
    environment = {**os.environ, **({"THP_MEM_ALLOC_ENABLE": "1"} if ours else {})}
    command = [sys.executable, __file__, setting_name, "--contender", name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("setting", nargs="?", default="char", choices=SETTINGS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contender")
    given = parser.parse_args()
    setting = SETTINGS[given.setting]
    if given.contender:
        times = contend(given.contender, setting)[max(WARM, setting.steps // 10) :]
        peak = __import__("resource").getrusage(0).ru_maxrss / 1024
        print(json.dumps({"seconds": statistics.median(times), "rss_mib": peak}))
        return
    print(describe_machine("torch", "transformers"))
    print(f"{given.setting}: {setting}, {given.rounds} rounds\n")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(given.rounds):
        for name in CONTENDERS:
            found[name].append(child(name, given.setting))
    base = statistics.median(r["seconds"] for r in found[CONTENDERS[0]])
    print(f"{'':34}{'ms/step':>9}{'tokens/s':>11}{'spread':>15}{'x plain':>9}{'MiB':>7}")
    for name, rounds in found.items():
        seconds = [r["seconds"] for r in rounds]
        median = statistics.median(seconds)
        rate = setting.batch * setting.block / median
        spread = f"{min(seconds) * 1e3:.1f}-{max(seconds) * 1e3:.1f}"
        memory = statistics.median(r["rss_mib"] for r in rounds)
        print(
            f"{name:34}{median * 1e3:9.1f}{rate:11,.0f}{spread:>15}"
            f"{base / median:9.2f}{memory:7.0f}"
        )


if __name__ == "__main__":
    main()
