"""Inference of real sizes, random weights, beside transformers and CTranslate2, all on the CPU.

    python tests/benchmarks/bench_inference.py gpt|bert|t5 [--rounds 3] [--only 'cambrian*']
    python tests/benchmarks/bench_inference.py gpt --case 1x192+64 --case 1x960+64

"gpt" is GPT-2 small, which continues prompts; "bert" BERT base with a classifier of two classes,
which reads texts; "t5" T5 small, which writes 64 tokens for sources. Every contender has the same
weights and the same tokens, is greedy, and runs in a process of its own, in turn over the rounds.
The first token's time is that of a run that ends with it; tokens a second are of those after it.
Float32 must give what transformers gives: of Cambrian it is an error otherwise, of the others, and
of coarser precisions, the table tells how many tokens (or classes) agree; after a row's first other
token, all may be others. MiB is the process's peak over all cases, MB its weights' files. What else
torch has to offer (torch.compile) is `cambrian bench`'s business.
optimum-onnx is left out: it needs transformers < 4.58, and so an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine
from peers import (
    CLASSES,
    Engine,
    Run,
    convert,
    ctranslate2_engine,
    save_model,
    transformers_engine,
)

REFERENCE = "transformers float32"
NAMES = (  # an engine, its format where it has several, and a precision
    REFERENCE,
    "transformers bfloat16",
    "ctranslate2 float32",
    "ctranslate2 int8",
    "cambrian onnx float32",
    "cambrian onnx int8",
    "cambrian onnx-ort float32",
    "cambrian onnx-ort int8",
)
METRICS = {"gpt": ("first ms", "tokens/s"), "bert": ("ms",), "t5": ("ms", "tokens/s")}
ENOUGH = 5.0  # seconds that a case is repeated for, at least once, after a run that warms up
NEAR = 1e-3  # by how much Cambrian's logits of classes may differ in float32
SHORT = 32  # tokens of the cases that an export is proved by here
WORDS = "a few words to make a tokenizer of"
FILES = ("*.safetensors", "*.onnx", "*.onnx.data", "model.bin")  # that hold weights


@dataclass(frozen=True)
class Case:
    """rows of `length` tokens are read, and `new` are generated for each; 1 of a classifier."""

    rows: int
    length: int
    new: int = 1

    @classmethod
    def of(cls, text: str) -> Case:
        """ROWSxLENGTH+NEW, of which a classifier has no NEW."""
        sizes, _, new = text.partition("+")
        rows, length = map(int, sizes.split("x"))
        return cls(rows, length, int(new or 1))

    def __str__(self) -> str:
        return f"{self.rows}x{self.length}+{self.new}"


CASES = {
    "gpt": (Case(1, 128, 64), Case(8, 128, 64), Case(1, 896, 64)),
    "bert": (Case(1, 128), Case(8, 128)),
    "t5": (Case(1, 128, 64), Case(8, 128, 64)),
}


# -- what is run ------------------------------------------------------------------------------


def folder_of(name: str, folder: Path) -> Path:
    """Where a contender's files are."""
    return folder / ("model" if name.startswith("transformers") else name.replace(" ", "-"))


def make(name: str, family: str, folder: Path) -> None:
    """Write a contender's files, all or none."""
    out = folder_of(name, folder)
    draft = out.with_name(f"{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    engine, *kind, precision = name.split()
    if engine == "transformers":
        save_model(family, draft)
        save_tokenizer(family, draft)
    elif engine == "ctranslate2":
        convert(family, folder / "model", draft, precision)
    else:
        export(family, folder, draft, kind[0], precision)
    draft.rename(out)


def save_tokenizer(family: str, folder: Path) -> None:
    """A small one, for exports cannot do without."""
    from cambrian.data.tokenizer import GPT, Tokenizer
    from cambrian_bert.data import BERT
    from cambrian_t5.data import SPECIALS

    specials = {"gpt": GPT, "bert": BERT, "t5": SPECIALS}[family]
    Tokenizer.train("bpe", [WORDS], 600, specials).save(folder)


def export(family: str, folder: Path, out: Path, kind: str, precision: str) -> None:
    """Export through Cambrian, proved by short cases alone: the whole sweep takes minutes at these
    sizes, and is what the tests are for. Nor is there quality to lose in random weights."""
    import cambrian

    spec = cambrian.open_checkpoint(folder / "model").spec
    network: Any = spec.model.load()
    cases = network.cases
    network.cases = lambda self: (case for case in cases(self) if is_short(case))
    judged: dict[str, Any] = {}
    if precision == "int8":
        limits = {name: 100 * limit for name, limit in spec.pipeline.load().tolerated.items()}
        judged = {"data": [str(held_out(family, folder))], "limits": limits}
    cambrian.export(folder / "model", out, format=kind, precision=precision, **judged)


def is_short(case: Any) -> bool:
    """Whether no call of a case of an export reads many tokens."""
    return all(x.shape[-1] <= SHORT for _, given in case.calls for x in given.values())


def held_out(family: str, folder: Path) -> Path:
    """A few examples, written to a file."""
    words = ["a", "few", "words", "to", "make", "a", "tokenizer", "of"]
    records = {
        "gpt": [{"text": WORDS}],
        "bert": [{"text": word, "label": f"LABEL_{i % 2}"} for i, word in enumerate(words)],
        "t5": [{"source": word, "target": word} for word in words[:4]],
    }[family]
    file = folder / "held-out.jsonl"
    file.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return file


def open_engine(name: str, family: str, folder: Path) -> tuple[Engine, str]:
    """What runs a contender, and the provider that it really has."""
    model, (engine, *_, precision) = folder / "model", name.split()
    if engine == "transformers":
        return transformers_engine(family, model, precision)
    if engine == "ctranslate2":
        return ctranslate2_engine(family, folder_of(name, folder), model, precision)
    return cambrian_engine(family, folder_of(name, folder))


def cambrian_engine(family: str, folder: Path) -> tuple[Engine, str]:
    """A pipeline's own work for benchmarks."""
    import cambrian
    from cambrian.workload import EncoderSizes, GenerationSizes

    pipeline = cambrian.load(folder, device="cpu")

    def engine(ids: np.ndarray[Any, Any]) -> Run:
        rows, length = ids.shape  # the pipeline draws the same tokens

        def run(new: int) -> np.ndarray[Any, Any]:
            if family == "bert":
                return next(pipeline.workload(EncoderSizes(batch=rows, length=length)).run())
            sizes = GenerationSizes(batch=rows, prompt=length, new=new)
            return np.stack([*pipeline.workload(sizes).run()], axis=1)

        return run

    session = pipeline.session
    settings = (f"{name} {value}" for name, value in session.settings.items())
    return engine, ", ".join([session.provider, *settings])


def contend(name: str, family: str, folder: Path) -> dict[str, Any]:
    """One contender's figures and answers, by case."""
    from cambrian.benchmarking.child import peak_memory
    from cambrian.workload import random_ids

    vocabulary = json.loads((folder / "model" / "config.json").read_text())["vocab_size"]
    engine, provider = open_engine(name, family, folder)
    found: list[dict[str, Any]] = []
    for case in CASES[family]:
        run = engine(random_ids(vocabulary, case.rows, case.length))
        answer = run(case.new)
        found.append({**timed(run, case), "answer": answer.tolist()})
    return {"cases": found, "mib": peak_memory(), "provider": provider}


def timed(run: Run, case: Case) -> dict[str, float]:
    """Medians of a case's metrics."""
    firsts: list[float] = []
    totals: list[float] = []
    rates: list[float] = []
    begun = time.perf_counter()
    while not totals or time.perf_counter() - begun < ENOUGH:
        total = seconds(run, case.new)
        first = seconds(run, 1) if case.new > 1 else total
        firsts.append(first * 1e3)
        totals.append(total * 1e3)
        if case.new > 1:
            rates.append(case.rows * (case.new - 1) / max(total - first, 1e-9))
    found = {"first ms": statistics.median(firsts), "ms": statistics.median(totals)}
    return found | ({"tokens/s": statistics.median(rates)} if rates else {})


def seconds(run: Run, new: int) -> float:
    start = time.perf_counter()
    run(new)
    return time.perf_counter() - start


# -- what is found ----------------------------------------------------------------------------


Rounds = Mapping[str, Sequence[Mapping[str, Any]]]  # by contender: what `contend` found


def agreement(family: str, want: Any, got: Any) -> tuple[int, int, float]:
    """How many tokens or classes are equal, of how many, and by how much logits differ at most."""
    one, other = np.array(want), np.array(got)
    off = float(np.abs(one - other).max()) if family == "bert" else 0.0
    if family == "bert":
        one, other = one.argmax(-1), other.argmax(-1)
    return int((one == other).sum()), one.size, off


def require_same(name: str, family: str, found: Rounds) -> None:
    """End where Cambrian in float32 differs from transformers: it would be no contender."""
    if not (name.startswith("cambrian") and name.endswith("float32") and found.get(REFERENCE)):
        return
    answers = (found[REFERENCE][0]["cases"], found[name][-1]["cases"])
    for case, want, got in zip(CASES[family], *answers, strict=True):
        agree, count, off = agreement(family, want["answer"], got["answer"])
        if agree < count or off > NEAR:
            raise SystemExit(
                f"{name} gives {agree} of transformers' {count} answers at {case}, with logits "
                f"{off:.1e} apart, so it is no contender."
            )


def summary(family: str, found: Rounds, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each case and contender: of each metric the median, the best and the ratios."""
    for number, case in enumerate(CASES[family]):
        for name, rounds in found.items():
            row: dict[str, Any] = {"name": name, **asdict(case)}
            peers = {
                "of transformers": found.get(REFERENCE),
                "of ctranslate2": found.get(f"ctranslate2 {name.split()[-1]}"),
            }
            for metric in METRICS[family]:
                values = [each["cases"][number][metric] for each in rounds]
                median = statistics.median(values)
                best = max(values) if metric.endswith("/s") else min(values)
                row[metric] = {"median": median, "best": best}
                for label, other in peers.items():
                    if other:
                        base = statistics.median(each["cases"][number][metric] for each in other)
                        ratio = median / base if metric.endswith("/s") else base / median
                        row[metric][label] = ratio
            if reference := found.get(REFERENCE):
                want = reference[0]["cases"][number]["answer"]
                row["same"] = min(
                    agreement(family, want, each["cases"][number]["answer"]) for each in rounds
                )
            row["mib"] = statistics.median(each["mib"] for each in rounds)
            files = [file for kind in FILES for file in folder_of(name, folder).glob(kind)]
            row["mb"] = sum(file.stat().st_size for file in files) / 1e6
            row["provider"] = rounds[0]["provider"]
            yield row


def show(family: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """The tables, one for each case. Of ratios, more is faster."""
    for case in CASES[family]:
        print(f"\n{case.rows} x {case.length} tokens", f", {case.new} new" * (case.new > 1), sep="")
        heads = (f"{m:>11}{'best':>9}{'x transf':>9}{'x ct2':>7}" for m in METRICS[family])
        print(f"{'':26}", *heads, f"{'MiB':>7}{'MB':>6}  same", sep="")
        for row in rows:
            if (row["rows"], row["length"], row["new"]) != (case.rows, case.length, case.new):
                continue
            cells = [f"{row['name']:26}"]
            for metric in METRICS[family]:
                found = row[metric]
                ratios = (found.get(f"of {peer}") for peer in ("transformers", "ctranslate2"))
                one, other = ("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
                cells.append(f"{found['median']:11.1f}{found['best']:9.1f}{one:>9}{other:>7}")
            print(*cells, f"{row['mib']:7.0f}{row['mb']:6.0f}  {told(row)}", sep="")


def told(row: Mapping[str, Any]) -> str:
    """How far a contender agrees, and where it ran."""
    if "same" not in row:
        return f"not compared  {row['provider']}"
    agree, count, off = row["same"]
    return f"{agree}/{count}" + f" off by {off:.0e}" * (off > 0) + f"  {row['provider']}"


# -- the course -------------------------------------------------------------------------------


def child(name: str, family: str, folder: Path, *options: str) -> str:
    """What a process of this script prints; SystemExit with its last words where it fails."""
    cases = [f"--case={case}" for case in CASES[family]]
    done = subprocess.run(
        [
            sys.executable,
            __file__,
            family,
            f"--folder={folder}",
            f"--child={name}",
            *cases,
            *options,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def compare(given: argparse.Namespace, names: Sequence[str], folder: Path) -> None:
    """Make what is missing, let everyone run in turn, and tell."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys((REFERENCE, *names)):
        if not folder_of(name, folder).is_dir():
            start = time.perf_counter()
            child(name, given.family, folder, "--make")
            print(f"made {name} in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(given.rounds):
        for name in names:
            print(f"round {number + 1}/{given.rounds}: {name}", file=sys.stderr)
            found[name].append(json.loads(child(name, given.family, folder).splitlines()[-1]))
            require_same(name, given.family, found)
    machine = describe_machine("torch", "transformers", "ctranslate2", "onnxruntime-gpu")
    rows = [*summary(given.family, found, folder)]
    print(f"{machine}\n{CLASSES[given.family]}, medians and best of {given.rounds} rounds")
    show(given.family, rows)
    if given.json:
        result = {"machine": machine, "family": given.family, "rounds": given.rounds, "rows": rows}
        given.json.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=CASES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", action="append", type=Case.of, metavar="ROWSxLENGTH+NEW")
    parser.add_argument("--only", action="append", metavar="PATTERN", help="of names; repeatable")
    parser.add_argument("--folder", type=Path, help="where models are kept, and found again")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    CASES[given.family] = tuple(given.case or CASES[given.family])
    if given.make:
        make(given.child, given.family, given.folder)
        return
    if given.child:
        print(json.dumps(contend(given.child, given.family, given.folder)))
        return
    names = [n for n in NAMES if any(fnmatchcase(n, p) for p in given.only or ("*",))]
    if not names or given.rounds < 1:
        parser.error(f"there must be a round, and a contender of: {', '.join(NAMES)}")
    with tempfile.TemporaryDirectory() as scratch:
        compare(given, names, (given.folder or Path(scratch)) / given.family)


if __name__ == "__main__":
    main()
