"""BERT and T5 from raw text to results, through the command line and in real folders."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import cambrian
from cambrian_t5.metrics import compare

SMALL_BERT = ["num_hidden_layers=1", "hidden_size=32", "num_attention_heads=2",
              "intermediate_size=64", "max_position_embeddings=40"]  # fmt: skip
SMALL_T5 = ["d_model=32", "d_kv=8", "d_ff=64", "num_layers=1", "num_heads=4", "n_positions=40",
            "tokenizer=char"]  # fmt: skip
FAST = ["device=cpu", "precision=float32", "warmup_steps=2", "evaluate_batches=2"]
WORDS = {"pos": "good great lovely", "neg": "bad awful dreadful"}


def cli(*words: str | Path, stdin: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cambrian", *map(str, words)],
        input=stdin,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A file a class; its words give each line away."""
    folder = tmp_path_factory.mktemp("reviews")
    rng = np.random.default_rng(0)
    files: list[str] = []
    for first, (name, words) in enumerate(WORDS.items()):
        lines = [  # no number is in both, or whoever remembers one misjudges the other
            f"film {2 * n + first} was {rng.choice(words.split())} and long, {n % 7} times"
            for n in range(200)
        ]
        (folder / f"r.{name}").write_text("\n".join(lines))
        files.append(str(folder / f"r.{name}"))
    return files


@pytest.fixture(scope="module")
def classifier(reviews: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that began with a masked language model, trained by the command line."""
    folder = tmp_path_factory.mktemp("classifier")
    base, out = folder / "mlm", folder / "cls"
    data = [word for file in reviews for word in ("--data", file)]
    settings = [*SMALL_BERT, *FAST, "rows=lines", "steps=5", "data.vocab_size=300"]
    cambrian.train("bert", base, data=reviews, settings=settings)
    pinned = [word for item in [*FAST, "steps=60", "optimizer.lr=3e-3"] for word in ("--set", item)]
    cli("train", "bert-classifier", "--base", base, *data, "--out", out, *pinned)
    cambrian.export(out, folder / "onnx")
    return folder


def test_a_classifier_is_measured_on_torch_and_on_onnx(
    classifier: Path, reviews: list[str], tmp_path: Path
) -> None:
    found = json.loads(cli("eval", classifier / "cls", "--json"))
    assert found["accuracy"] == 1.0 and found["macro_f1"] == 1.0
    assert found["confusion"]["labels"] == ["neg", "pos"]
    total = sum(sum(row) for row in found["confusion"]["counts"])
    assert 20 < total < 70  # a tenth is held out
    data = [word for file in reviews for word in ("--data", file)]
    picture = tmp_path / "c.svg"
    text = cli("eval", classifier / "onnx", *data, "--picture", picture)
    assert picture.read_text().startswith("<?xml")
    assert "accuracy            1.0000" in text
    assert "expected  1" in text


def test_classes_by_the_command_line(classifier: Path, tmp_path: Path) -> None:
    lines = "film 3 was lovely and long\nfilm 9 was awful and long\n"
    for folder in ("cls", "onnx"):
        rows = [
            json.loads(x)
            for x in cli("run", classifier / folder, "--json", stdin=lines).splitlines()
        ]
        assert [row["label"] for row in rows] == ["pos", "neg"]
        assert all(row["score"] > 0.5 for row in rows)
    (tmp_path / "in.txt").write_text(lines)
    cli("run", classifier / "onnx", "-i", tmp_path / "in.txt", "-o", tmp_path / "out.json")
    rows = [json.loads(line) for line in (tmp_path / "out.json").read_text().splitlines()]
    assert [row["label"] for row in rows] == ["pos", "neg"]


def test_a_classifier_in_int8_is_as_good(classifier: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8"
    words = ("--format", "onnx-ort", "--precision", "int8", "--limit", "accuracy=-0.05", "--json")
    found = json.loads(cli("export", classifier / "cls", out, *words))
    quality = found["receipt"]["quality"]
    assert quality["tolerated"] == {"accuracy": -0.05}
    assert quality["model"]["accuracy"] == 1.0 and quality["export"]["accuracy"] >= 0.95
    graph = onnx.load(out / "model.onnx", load_external_data=False).graph
    kinds = {node.op_type for node in graph.node}
    assert {"DynamicQuantizeMatMul", "Attention"} <= kinds and "MatMul" not in kinds
    texts = [f"film {n} was {word} and long" for n in range(9) for word in ("good", "dull")]
    together = cambrian.run(out, texts)
    for text, row in zip(texts, together, strict=True):  # one scale for a call's activations
        alone = cambrian.run(out, [text])[0]
        assert alone["score"] == pytest.approx(row["score"], abs=0.05)


def test_a_t5_in_int8_is_measured_by_bleu(copier: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"format": "onnx-ort", "precision": "int8"}
    artifact = cambrian.export(copier / "t5", tmp_path / "out", limits={"bleu": -100}, **given)
    quality = artifact.manifest.receipt["quality"]
    assert {"bleu", "chrf"} <= quality["export"].keys() == quality["model"].keys()
    size = sum(file.stat().st_size for file in artifact.path.glob("*.onnx*"))
    assert size < sum(file.stat().st_size for file in (copier / "onnx").glob("*.onnx*"))


def test_masks_are_filled_by_the_command_line(classifier: Path) -> None:
    text = cli(
        "run", classifier / "mlm", "film 3 was [MASK] and long", "--set", "top_k=3", "--json"
    )
    [masks] = json.loads(text)["masks"]
    assert len(masks) == 3
    assert masks[0]["score"] >= masks[1]["score"] >= masks[2]["score"]


def test_transformers_opens_the_classifier(classifier: Path) -> None:
    import torch
    import transformers

    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(classifier / "cls")
    tokenizer = transformers.AutoTokenizer.from_pretrained(classifier / "cls")
    text = "film 3 was lovely and long"
    with torch.no_grad():
        theirs = model.eval()(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1)
    ours = cambrian.run(classifier / "cls", [text])[0]
    assert model.config.id2label == {0: "neg", 1: "pos"}
    assert ours["score"] == pytest.approx(float(theirs.max()), abs=1e-5)


def test_embeddings_to_a_file(tmp_path: Path) -> None:
    settings = [*SMALL_BERT, *FAST, "steps=3", "data.vocab_size=300"]
    cambrian.train("bert-embedder", tmp_path / "e", settings=settings)
    cambrian.export(tmp_path / "e", tmp_path / "onnx")
    lines = "Sunday, 1 January 1950\n7/1/1950\n1950-01-07\n"
    for folder in ("e", "onnx"):
        cli("run", tmp_path / folder, "-o", tmp_path / f"{folder}.npy", stdin=lines)
    ours, exported = (np.load(tmp_path / f"{f}.npy") for f in ("e", "onnx"))
    assert ours.shape == (3, 32) and ours.dtype == np.float32
    assert np.allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)
    assert np.allclose(ours, exported, atol=1e-4)


def test_words_are_tagged(tmp_path: Path) -> None:
    (tmp_path / "t.conll").write_text("".join(f"x{n % 9} A\ny B\n\n" for n in range(200)))
    settings = [*SMALL_BERT, *FAST, "steps=40", "data.vocab_size=300", "deduplicate=false"]
    cambrian.train("roberta-tagger", tmp_path / "t", data=[str(tmp_path / "t.conll")],
                   settings=settings)  # fmt: skip
    found = cambrian.evaluate(tmp_path / "t")
    assert found.metrics["accuracy"] == 1.0
    assert found.confusion is not None and found.confusion.labels == ("A", "B")
    words = json.loads(cli("run", tmp_path / "t", "x3  y", "--json"))["words"]
    assert [(w["word"], w["start"], w["label"]) for w in words] == [("x3", 0, "A"), ("y", 4, "B")]


@pytest.fixture(scope="module")
def copier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 that has begun to learn dates."""
    folder = tmp_path_factory.mktemp("t5")
    settings = [*SMALL_T5, *FAST, "steps=30", "batch_size=32", "data.vocab_size=200"]
    cambrian.train("t5", folder / "t5", settings=[*settings, "data.prefix=date: "])
    cambrian.export(folder / "t5", folder / "onnx")
    return folder


def test_text_to_text_is_the_same_on_both_engines(copier: Path) -> None:
    texts = ["Sunday, 1 January 1950", "7/1/1950", "May 9, 2001"]
    for options in ({}, {"num_beams": 3}, {"do_sample": True, "seed": 3}):
        given: dict[str, Any] = {"max_new_tokens": 12, **options}
        ours, exported = (cambrian.run(copier / f, texts, **given) for f in ("t5", "onnx"))
        assert [row["tokens"] for row in ours] == [row["tokens"] for row in exported]
    assert cli("run", copier / "onnx", texts[0], "--set", "max_new_tokens=12") == (
        cambrian.run(copier / "t5", texts[:1], max_new_tokens=12)[0]["text"] + "\n"
    )


def test_text_to_text_is_measured(copier: Path, tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text("May 9, 2001\t2001-05-09\n7/1/1950\t1950-01-07\n")
    given = ["--data", tmp_path / "p.tsv", "--option", "max_new_tokens=12", "--json"]
    ours, exported = (json.loads(cli("eval", copier / f, *given)) for f in ("t5", "onnx"))
    assert ours["loss"] > 0
    for name, value in exported.items():
        assert ours[name] == value
    assert {"bleu", "chrf", "rougeL", "exact_match"} <= {*exported}


def test_another_prefix_is_measured_with_it(copier: Path, tmp_path: Path) -> None:
    texts, dates = ["May 9, 2001", "7/1/1950"], ["2001-05-09", "1950-01-07"]
    rows = [f"{text}\t{date}\n" for text, date in zip(texts, dates, strict=True)]
    (tmp_path / "p.tsv").write_text("".join(rows))
    twice = [f"date: {text}" for text in texts]
    found = cambrian.run(copier / "t5", twice, max_new_tokens=12)
    assert [r["text"] for r in found] != [
        r["text"] for r in cambrian.run(copier / "t5", texts, max_new_tokens=12)
    ]
    expected = compare([row["text"] for row in found], dates).metrics
    for folder in ("t5", "onnx"):
        scores = cambrian.evaluate(
            copier / folder,
            data=[str(tmp_path / "p.tsv")],
            settings=["data.prefix=date: date: "],
            max_new_tokens=12,
        )
        for name, value in expected.items():
            assert scores.metrics[name] == value


def test_transformers_opens_the_t5(copier: Path) -> None:
    import torch
    import transformers

    model: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(copier / "t5").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(copier / "t5")
    text = "May 9, 2001"
    ids = tokenizer("date: " + text, return_tensors="pt").input_ids
    with torch.no_grad():
        theirs = model.generate(ids, max_new_tokens=12, do_sample=False, num_beams=1)[0].tolist()
    ours = cambrian.run(copier / "t5", [text], max_new_tokens=12)[0]["tokens"]
    assert theirs[1 : len(ours) + 1] == ours
