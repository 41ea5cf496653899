"""What how-to pages take for granted: files, runs, a Hub; and processes that have torch already.

Training is cut to a few steps, and the models of the Hub are small ones under the real names.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import multiprocessing
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cambrian import load_registry
from cambrian.checkpoint import save_description, save_weights
from cambrian.testing import built, prepared
from cambrian.testing.hub import LoopbackHub, User
from console import Shell

HUB_MODELS = {
    "openai-community/gpt2": ("gpt", {"n_positions": 256}),
    "distilbert/distilgpt2": ("gpt", {"n_positions": 256}),
    "google-t5/t5-small": ("t5", {}),
    "google-bert/bert-base-uncased": ("bert", {}),
}
ENTRIES = """
[models.gpt2]
architecture = "gpt"
weights = "hf://openai-community/gpt2"
[models.bert-base-uncased]
architecture = "bert"
weights = "hf://google-bert/bert-base-uncased"
"""
FEW = ("steps=4", "warmup_steps=1", "batch_size=4", "evaluate_batches=1", "device=cpu")
WORDS = (
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "two",
    "birds",
    "that",
    "sang",
    "of",
    "rain",
)


def fill_hub(hub: LoopbackHub, scratch: Path) -> None:
    """Put small models under real names, as transformers would have saved them."""
    hub.users = {"hf_me": User("me", can_write=True)}
    for name, (architecture, changes) in HUB_MODELS.items():
        spec, folder = load_registry().models[architecture], scratch / name.replace("/", "--")
        data, _ = prepared(spec)
        config = dataclasses.replace(data.config, **changes)
        save_description(folder, spec, config, data.processor, "0")
        save_weights(folder, spec, config, built(spec, config))
        described = json.loads((folder / "config.json").read_text())
        del described["cambrian"]
        (folder / "config.json").write_text(json.dumps(described))
        repository = hub.create(name, license="apache-2.0")
        repository.commit({path.name: path for path in folder.iterdir()})


def sentences(count: int, seed: int) -> list[str]:
    """Sentences of a few words, drawn from a seed."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, 6 + i % 4)) + "." for i in range(count)]


def fill_folder(folder: Path) -> None:
    """The texts, tables and pictures that the pages name."""
    corpus = folder / "corpus"
    corpus.mkdir()
    for number in range(3):
        (corpus / f"{number}.txt").write_text("\n\n".join(sentences(300, number)))
    records = [json.dumps({"text": line}) for line in sentences(200, 3)]
    (folder / "articles.jsonl").write_text("\n".join(records))
    (folder / "more.jsonl.gz").write_bytes(gzip.compress("\n".join(records).encode()))
    (folder / "more.txt").write_text("\n\n".join(sentences(300, 4)))
    (folder / "sentences.txt").write_text("\n".join(sentences(3, 5)))
    for name, seed in (("pos", 6), ("neg", 7)):
        (folder / f"reviews.{name}").write_text("\n".join(sentences(60, seed)))
    pairs = zip(sentences(60, 8), sentences(60, 9), strict=True)
    (folder / "pairs.tsv").write_text("".join(f"{one}\t{other}\n" for one, other in pairs))
    for name, seed in (("train", 10), ("dev", 11)):
        (folder / f"{name}.conll").write_text("\n".join(tagged(seed)))
    for part, count in (("train", 80), ("val", 12), ("test", 6)):
        for language in ("en", "de"):
            text = "\n".join(sentences(count, hash_of(part + language)))
            (folder / f"{part}.{language}.gz").write_bytes(gzip.compress(text.encode()))
    fill_pictures(folder)


def hash_of(name: str) -> int:
    """A seed of a name's own."""
    return sum(name.encode())


def tagged(seed: int) -> list[str]:
    """Sentences in CoNLL's form."""
    lines = (sentence.rstrip(".").split() for sentence in sentences(30, seed))
    return ["".join(f"{w} {'O' if len(w) < 4 else 'B-X'}\n" for w in words) for words in lines]


def fill_pictures(folder: Path) -> None:
    """Grey pictures of 28 x 28 with labels, and three files."""
    from PIL import Image

    random = np.random.default_rng(0)
    for part, count in (("train", 96), ("val", 32), ("test", 64)):
        labels = np.arange(count) % 4
        images = random.integers(0, 90, (count, 28, 28)).astype(np.uint8)
        images[np.arange(count), 7 * labels + 3] = 255  # a line, by its class
        np.savez(folder / f"{part}.npz", images=images, labels=labels)
    for number, name in enumerate(("digit", "a", "b")):
        Image.fromarray(images[number]).save(folder / f"{name}.png")


@dataclass
class QuickShell(Shell):
    """Runs `cambrian` in a process forked from one that has imported torch, and trains briefly."""

    def run(self, line: str) -> str:
        if line.startswith("cambrian train") and "--resume" not in line:
            line += "".join(f" --set {setting}" for setting in FEW)
        return super().run(line)

    def start(self, arguments: list[str], given: Mapping[str, str], what: str) -> str:
        if arguments[:2] != ["-m", "cambrian"]:
            return super().start(arguments, given, what)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "onnxruntime", "onnxscript"])
        streams = [self.folder.parent / name for name in ("stdout", "stderr")]
        variables = {**os.environ, "COLUMNS": "80", **self.variables, **given}
        process = context.Process(
            target=be_cambrian, args=(arguments[2:], str(self.folder), variables, streams)
        )
        process.start()
        process.join()
        printed, said = (stream.read_text("utf-8", errors="replace") for stream in streams)
        assert process.exitcode == 0, f"{what}\n{printed}{said}"
        return printed


def be_cambrian(
    words: list[str], folder: str, variables: dict[str, str], streams: list[Path]
) -> None:
    """Be the command line, in the forked process."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    for number, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    from cambrian.cli import main

    sys.argv = ["cambrian", *words]
    main()
