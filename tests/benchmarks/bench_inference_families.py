"""Inference of BERT base and T5 small (random weights) beside transformers, on the same weights.

    python tests/benchmarks/bench_inference_families.py [bert|t5] [--rounds 3]

"bert" is one masked-LM pass over rows of 128 tokens, in batches of 1 and 8; "t5" reads 128 tokens
and generates 64, greedily. Exports the model through Cambrian, then runs every contender in a
process of its own, in turn; medians over rounds. All in float32 must give the same tokens. MiB is
the process's peak over all batches.
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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine

CONTENDERS = ("transformers", "transformers bfloat16", "cambrian torch", "cambrian onnx")
LENGTH, NEW = 128, 64
BATCHES = {"bert": (1, 8), "t5": (1,)}


def make(family: str, folder: Path) -> None:
    """Write the model in the Hub's layout, with a tokenizer, and export it."""
    import torch
    import transformers

    import cambrian
    from cambrian.data.tokenizer import Tokenizer

    torch.manual_seed(0)
    if family == "bert":
        from cambrian_bert.data import BERT

        specials = BERT
        model: Any = transformers.BertForMaskedLM(transformers.BertConfig())
    else:
        from cambrian_t5.data import SPECIALS

        specials = SPECIALS
        model = transformers.T5ForConditionalGeneration(
            transformers.T5Config(decoder_start_token_id=0)
        )
    model.save_pretrained(folder / "model")
    words = ["a few words to make a tokenizer of"]
    Tokenizer.train("bpe", words, 600, specials).save(folder / "model")
    cambrian.export(folder / "model", folder / "onnx")


def inputs(family: str, rows: int) -> Any:
    """Token ids (rows, LENGTH)."""
    return np.random.default_rng(0).integers(1000, 30000, size=(rows, LENGTH))


def with_transformers(family: str, folder: Path, dtype: str, rows: int) -> Callable[[], list[int]]:
    """transformers' own forward passes, eager, without generate()'s overhead."""
    import torch
    import transformers

    kinds = {"bert": transformers.BertForMaskedLM, "t5": transformers.T5ForConditionalGeneration}
    model = kinds[family].from_pretrained(folder / "model", dtype=getattr(torch, dtype)).eval()
    ids = torch.from_numpy(inputs(family, rows))
    mask = torch.ones_like(ids)

    @torch.inference_mode()
    def classify() -> list[int]:
        return model(ids, attention_mask=mask).logits.argmax(-1).flatten().tolist()

    @torch.inference_mode()
    def generate() -> list[int]:
        source = model.get_encoder()(ids, attention_mask=mask)
        past, token, found = None, torch.zeros(rows, 1, dtype=torch.long), list[int]()
        for _ in range(NEW):
            step = model(
                encoder_outputs=source,
                attention_mask=mask,
                decoder_input_ids=token,
                past_key_values=past,
                use_cache=True,
            )
            past, token = step.past_key_values, step.logits[:, -1:].argmax(-1)
            found.append(int(token[0, 0]))
        return found

    return classify if family == "bert" else generate


def with_cambrian(family: str, folder: Path, rows: int) -> tuple[Callable[[], list[int]], str]:
    """A session's graphs, as the pipelines call them."""
    import cambrian
    from cambrian.generation.config import GenerationConfig
    from cambrian.generation.sampling import continuations
    from cambrian_t5.pipeline import T5Decoding

    pipeline: Any = cambrian.load(folder, device="cpu")
    session, ids = pipeline.session, inputs(family, rows)
    given: Mapping[str, Any] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    def classify() -> list[int]:
        outputs, _ = session.run("model", {**given, "token_type_ids": np.zeros_like(ids)})
        return outputs["logits"].argmax(-1).flatten().tolist()

    def generate() -> list[int]:
        decoding = T5Decoding(session, ids.tolist(), [NEW] * rows, pipeline.config)
        steps = continuations(decoding, GenerationConfig(max_new_tokens=NEW))
        return [int(next(steps)[0]) for _ in range(NEW)]

    return (classify if family == "bert" else generate), session.provider


def contend(name: str, family: str, folder: Path) -> dict[str, Any]:
    """One contender's figures: the median of five runs after one that warms up, by batch."""
    provider, seconds, tokens = "", dict[str, float](), dict[str, list[int]]()
    for rows in BATCHES[family]:
        if name.startswith("transformers"):
            dtype = "bfloat16" if "bfloat16" in name else "float32"
            run = with_transformers(family, folder, dtype, rows)
        else:
            where = folder / ("onnx" if name.endswith("onnx") else "model")
            run, provider = with_cambrian(family, where, rows)
        tokens[str(rows)] = run()
        times: list[float] = []
        for _ in range(5):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        seconds[str(rows)] = statistics.median(times)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "tokens": tokens, "mib": peak, "provider": provider}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", nargs="?", default="bert", choices=BATCHES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--contender")
    given = parser.parse_args()
    if given.contender:
        print(json.dumps(contend(given.contender, given.family, given.folder)))
        return
    print(describe_machine("torch", "transformers", "onnxruntime-gpu"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        if not (folder / "onnx").is_dir():
            start = time.perf_counter()
            make(given.family, folder)
            print(f"{given.family}: export and parity sweep {time.perf_counter() - start:.0f} s\n")
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
        for _ in range(given.rounds):
            for name in CONTENDERS:
                options = [given.family, "--folder", str(folder), "--contender", name]
                done = subprocess.run(
                    [sys.executable, __file__, *options],
                    capture_output=True,
                    text=True,
                    check=True,
                    env={**os.environ, "HF_HUB_OFFLINE": "1"},
                )
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
    show(given.family, found)


def show(family: str, found: Mapping[str, list[dict[str, Any]]]) -> None:
    """The table."""
    print(f"{'':24}{'batch':>6}{'ms':>9}{'best':>9}{'ratio':>7}{'MiB':>7}  tokens equal")
    for rows in map(str, BATCHES[family]):
        base = statistics.median(r["seconds"][rows] for r in found["transformers"])
        same = found["transformers"][0]["tokens"][rows]
        for name, rounds in found.items():
            times = [r["seconds"][rows] for r in rounds]
            agree = sum(a == b for a, b in zip(same, rounds[0]["tokens"][rows], strict=True))
            if agree < len(same) and "bfloat16" not in name:
                raise SystemExit(f"{name}: {agree} of {len(same)} tokens, so it is no contender")
            print(
                f"{name:24}{rows:>6}{statistics.median(times) * 1e3:9.1f}{min(times) * 1e3:9.1f}"
                f"{base / statistics.median(times):7.2f}"
                f"{statistics.median(r['mib'] for r in rounds):7.0f}"
                f"  {agree}/{len(same)}  {rounds[0]['provider']}"
            )


if __name__ == "__main__":
    main()
