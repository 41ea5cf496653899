"""What int8 and int4 cost on models that have learnt something, here and in CTranslate2.

    python tests/benchmarks/bench_quality.py [gpt|bert|t5] [--folder runs/quality] [--quick]

Trains a small model of the family (characters of tinyshakespeare, rt-polarity's reviews, Multi30k's
English to German), exports it in float32, int8 and, but BERT, int4 (beside the same 4 bits of
weights that are rounded to the nearest and not fitted), converts the same weights to CTranslate2,
and measures all on the same held-out data: perplexity, accuracy, BLEU (greedy). --quick trains for
a few steps, to see that it runs.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine
from peers import convert, ctranslate2_engine

import cambrian
from cambrian.cli.train import prepare_process
from cambrian.evaluation import held_out
from cambrian.loading import open_checkpoint

DATA = Path(__file__).parents[3] / "shared" / "data"
SHAKESPEARE = [str(DATA / "text" / "tinyshakespeare.txt")]
REVIEWS = [str(DATA / "sentiment" / f"rt-polarity.{name}") for name in ("pos", "neg")]
NAMES = {"gpt": "gpt-char", "bert": "bert-classifier", "t5": "t5"}
FIGURES = {"gpt": "perplexity", "bert": "accuracy", "t5": "bleu"}
INT4 = dict.fromkeys(("gpt", "t5"), ("int4", "int4 nearest"))
GREEDY: dict[str, Any] = {"max_new_tokens": 60}


def pairs(split: str) -> list[str]:
    """A split of Multi30k, sources first."""
    return [str(DATA / "translation" / f"multi30k_{split}.{side}.gz") for side in ("en", "de")]


def train(family: str, out: Path, quick: bool) -> list[str]:
    """Train a model unless it is there; returns what to measure on, if the run held nothing out."""
    steps = 20 if quick else None
    if family == "gpt":
        settings = ["clean=false", "deduplicate=false", "n_embd=256", f"steps={steps or 2000}"]
        given: dict[str, Any] = {"data": SHAKESPEARE}
    elif family == "bert":
        from bench_sentiment import FINE_TUNING, PRETRAINING

        base = out.with_name("bert-pretrained")
        if not base.is_dir():
            first = [*PRETRAINING, *([f"steps={steps}"] if steps else ())]
            cambrian.train("bert", base, data=REVIEWS, settings=first)
        settings = [*FINE_TUNING, *([f"steps={steps}"] if steps else ())]
        given = {"data": REVIEWS, "base": base}
    else:
        from bench_translation import SETTINGS

        settings = [*SETTINGS, f"steps={steps or 2000}"]
        given = {"data": pairs("train"), "validation": pairs("val")}
    if not out.is_dir():
        cambrian.train(NAMES[family], out, settings=settings, **given)
    return pairs("test_2016_flickr") if family == "t5" else []


def ours(folder: Path, family: str, prepared: Any) -> Mapping[str, float]:
    """An exported folder's figures."""
    from cambrian.evaluation import figures

    found = figures(cambrian.load(folder, device="cpu"), prepared, GREEDY if family == "t5" else {})
    assert found is not None
    return found.metrics


def theirs(network: Any, family: str, pipeline: Any, prepared: Any) -> float:
    """CTranslate2's figure on the same data."""
    if family == "gpt":
        total, count = 0.0, 0
        for row in windows(prepared.validation):
            [found] = network.score_batch([[f"t{n}" for n in row]])
            total, count = total - sum(found.log_probs), count + len(found.log_probs)
        return math.exp(total / count)
    examples = list(prepared.examples)
    texts = [text for text, _ in examples]
    if family == "bert":
        rows = pipeline.rows(pipeline.processor.encode_batch(texts))
        right = sum(
            pipeline.config.labels[int(network([rows[n].tolist()]).argmax())] == label
            for n, (_, label) in enumerate(examples)
        )
        return right / len(examples)
    from cambrian_t5.metrics import compare

    sources = [[f"t{n}" for n in row] for row in pipeline._encode(texts)]
    found = network.translate_batch(
        sources, beam_size=1, max_decoding_length=GREEDY["max_new_tokens"]
    )
    hypotheses = [[int(name[1:]) for name in each.hypotheses[0]] for each in found]
    return compare([pipeline._decode(ids) for ids in hypotheses],
                   [expected for _, expected in examples]).metrics["bleu"]  # fmt: skip


def windows(batches: Any) -> Iterator[list[int]]:
    """Each window's tokens, and the label of the last."""
    for number in range(len(batches)):
        batch = batches.batch(number)
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            known = int((labels >= 0).sum())
            yield [int(ids[0]), *map(int, labels[:known])]


def measure(family: str, root: Path, quick: bool) -> None:
    """Train, export, convert, and print the figures."""
    model = root / family
    data = train(family, model, quick)
    checkpoint = open_checkpoint(model)
    processor = checkpoint.processor()
    prepared = held_out(checkpoint, processor, data, ())
    found: dict[str, tuple[float, float]] = {}
    figure = FIGURES[family]
    for precision in ("float32", "int8", *INT4.get(family, ())):
        out = root / f"{family}-{precision.replace(' ', '-')}"
        export(model, out, precision, data)
        size = sum(file.stat().st_size for file in out.glob("*.onnx*")) / 1e6
        found[f"cambrian {precision}"] = ours(out, family, prepared)[figure], size
    pipeline: Any = cambrian.load(root / f"{family}-float32", device="cpu")
    for precision in ("float32", "int8"):
        out = Path(tempfile.mkdtemp(dir=root)) / "ct2"
        convert(family, model, out, precision)
        size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
        network = loaded(family, out, model, precision)
        found[f"ctranslate2 {precision}"] = theirs(network, family, pipeline, prepared), size
    print(f"\n{family}: {figure} on held-out data\n{'':24}{figure:>12}{'MB':>8}")
    for name, (value, size) in found.items():
        print(f"{name:24}{value:12.4f}{size:8.2f}", flush=True)


def export(model: Path, out: Path, precision: str, data: list[str]) -> None:
    """Export whatever it costs; "int4 nearest" is what no export is."""
    from cambrian_onnx import fit

    kind, _, nearest = precision.partition(" ")
    tolerated = cambrian.open_checkpoint(model).spec.pipeline.load().tolerated
    loose = {name: 100 * limit for name, limit in tolerated.items()}
    given: dict[str, Any] = {"data": data, "limits": loose} if kind != "float32" else {}
    fitted, worst = fit.fitted, fit.WORST
    if nearest:  # to inputs that are not correlated there is nothing to fit
        fit.fitted = lambda weight, moments: fitted(weight, torch.eye(len(moments)))
        fit.WORST = 1.0
    try:
        cambrian.export(model, out, format="onnx-ort", precision=kind, force=True, **given)
    finally:
        fit.fitted, fit.WORST = fitted, worst


def loaded(family: str, folder: Path, model: Path, precision: str) -> Any:
    """CTranslate2's model; of BERT a function from rows of ids to the classes' logits."""
    import ctranslate2

    if family == "bert":
        engine, _ = ctranslate2_engine(family, folder, model, precision)
        return lambda rows: engine(np.array(rows))(0)
    kind = ctranslate2.Generator if family == "gpt" else ctranslate2.Translator
    return kind(str(folder), device="cpu", compute_type=precision)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", nargs="?", choices=NAMES)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"skipped: the data sets are not at {DATA}")
    prepare_process()
    print(describe_machine("torch", "onnxruntime-gpu", "ctranslate2"))
    with tempfile.TemporaryDirectory() as scratch:
        root = given.folder or Path(scratch)
        root.mkdir(parents=True, exist_ok=True)
        for family in [given.family] if given.family else NAMES:
            measure(family, root, given.quick)


if __name__ == "__main__":
    main()
