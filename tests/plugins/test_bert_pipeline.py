"""The pipelines of BERT and RoBERTa: against transformers' own, and the same in ONNX Runtime."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from cambrian import __version__
from cambrian.api import export, load
from cambrian.checkpoint import save_description, save_weights
from cambrian.data.rows import Ragged
from cambrian.data.tokenizer import Tokenizer
from cambrian.errors import UsageError
from cambrian.runtime import Array
from cambrian.runtime.torch import TorchSession
from cambrian_bert import register_models
from cambrian_bert.data import BERT, ROBERTA
from cambrian_bert.pipeline import EncoderPipeline

SPECS = {spec.name: spec for spec in register_models()}
TEXT = "The quick brown fox jumps over the lazy dog. Größe, façade: a cat's paw isn't! " * 20
TEXTS = [
    "the quick fox",
    "Dogs jump, quick dogs; a lazy façade!",
    "",
    "over",
    "jumping brown cats over the lazy and quick dog, and so on",
]
FILES: dict[str, Path] = {}


def tokenizer_of(name: str) -> Tokenizer:
    if name.startswith("rob"):
        return Tokenizer.train("bpe", [TEXT], 300, ROBERTA)
    return Tokenizer.train("wordpiece-uncased", [TEXT], 120, BERT)


def saved(name: str, folder: Path) -> Path:
    """A folder with a random model, which transformers opens as well as we do."""
    spec, tokenizer = SPECS[name], tokenizer_of(name)
    config: Any = spec.config(
        vocab_size=tokenizer.vocab_size,
        hidden_size=36,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=50,
        max_position_embeddings=40,
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_id,
        id2label={"0": "low", "1": "middle", "2": "high", "3": "none"},
    )
    torch.manual_seed(0)
    model = spec.model.load()(config)
    save_description(folder, spec, config, tokenizer, __version__)
    save_weights(folder, spec, config, model)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: saved(name, tmp_path_factory.mktemp(name)) for name in SPECS}


def reference(task: str, name: str, folder: Path) -> Any:
    kind = getattr(transformers, str(SPECS[name].model_class))
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    model = kind.from_pretrained(folder).eval()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return transformers.pipeline(task, model=model, tokenizer=tokenizer, device="cpu")


def opened(name: str, folders: Mapping[str, Path]) -> Any:
    return load(folders[name], device="cpu")


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_fill_mask_equals_transformers(name: str, folders: dict[str, Path]) -> None:
    fill, theirs = opened(name, folders), reference("fill-mask", name, folders[name])
    mask = fill.processor.token(fill.processor.mask_id)
    inputs = [f"the {mask} fox", f"{mask}", f"lazy dogs, the quick {mask} jumps over a dog."]
    results = fill(inputs, top_k=7)
    for text, result in zip(inputs, results, strict=True):
        assert result["input"] == text
        [candidates], expected = result["masks"], theirs(text, top_k=7)
        scores = [c["score"] for c in candidates]
        assert np.allclose(scores, [e["score"] for e in expected], atol=1e-5)
        assert scores == sorted(scores, reverse=True)
        for found, wanted in zip(candidates, expected, strict=True):
            special = wanted["token"] in theirs.tokenizer.all_special_ids
            assert found["token"] == wanted["token_str"].strip() or special
            assert found["text"] == wanted["sequence"]


def test_several_masks_are_filled_together(folders: dict[str, Path]) -> None:
    fill, theirs = opened("bert", folders), reference("fill-mask", "bert", folders["bert"])
    text = "the [MASK] fox jumps [MASK] dog"
    [result] = fill([text])
    expected = theirs(text)
    assert len(result["masks"]) == 2 and all(len(mask) == 5 for mask in result["masks"])
    for candidates, wanted in zip(result["masks"], expected, strict=True):
        scores = [w["score"] for w in wanted]
        assert [c["score"] for c in candidates] == pytest.approx(scores, abs=1e-5)
    first, second = result["masks"]
    assert first[0]["text"] == second[0]["text"]
    assert "[MASK]" not in first[3]["text"] and first[3]["text"] != first[0]["text"]


def test_fill_mask_says_what_is_wrong(folders: dict[str, Path]) -> None:
    fill = opened("bert", folders)
    with pytest.raises(UsageError, match=r"Text 2 has nothing to fill: write \[MASK\]"):
        fill(["a [MASK]", "the dog"])
    [long] = fill(["[MASK]" + " the dog" * 40])  # of which not all is read, but all is written
    assert long["masks"][0][0]["text"].endswith(" ".join(["the dog"] * 40))
    with pytest.raises(UsageError, match="a mask beyond the 40"):
        fill(["dog " * 50 + "[MASK]"])
    with pytest.raises(UsageError, match="a text, not int"):
        fill([3])
    with pytest.raises(UsageError, match="top_k must be at least 1"):
        fill(["[MASK]"], top_k=0)
    assert fill.score([("a [MASK]", "b")]) is None
    fill.processor.mask_id = None
    with pytest.raises(UsageError, match="no mask token"):
        fill(["[MASK]"])


@pytest.mark.parametrize("name", ["bert-classifier", "roberta-classifier"])
def test_text_classification_equals_transformers(name: str, folders: dict[str, Path]) -> None:
    classify, theirs = opened(name, folders), reference("text-classification", name, folders[name])
    for text, result in zip(TEXTS, classify(TEXTS), strict=True):
        expected = {e["label"]: e["score"] for e in theirs(text, top_k=None)}
        assert list(result["scores"]) == list(expected)
        assert result["scores"] == pytest.approx(expected, abs=1e-5)
        assert result["label"] == next(iter(expected)) and math.fsum(result["scores"].values()) == (
            pytest.approx(1, abs=1e-12)
        )
        assert result["score"] == result["scores"][result["label"]]
    [short] = classify(TEXTS[:1], top_k=2)
    assert list(short["scores"].items()) == list(classify(TEXTS[:1])[0]["scores"].items())[:2]


@pytest.mark.parametrize("name", ["bert-tagger", "roberta-tagger"])
def test_token_classification_equals_transformers(name: str, folders: dict[str, Path]) -> None:
    """Of the reference, which tags tokens, the first of each word counts."""
    tag, theirs = opened(name, folders), reference("token-classification", name, folders[name])
    # A blank goes before the first word as before the others: in byte-level BPE it is part of it.
    lead = " " if name.startswith("rob") else ""
    inputs = [text for text in TEXTS if text] + ["  the quick\tfox's\n façade "]
    for text, result in zip(inputs, tag(inputs), strict=True):
        assert [w["word"] for w in result["words"]] == text.split()
        assert all(text[w["start"] : w["end"]] == w["word"] for w in result["words"])
        plain = " ".join(text.split())
        tokens = theirs(lead + plain)
        starts = np.cumsum([0, *(len(word) + 1 for word in plain.split())])[:-1]
        first: dict[int, Any] = {}
        for token in tokens:
            word = int(np.searchsorted(starts + len(lead), token["end"], "right"))
            first.setdefault(word, token)
        expected = [first[i + 1] for i in range(len(starts))]
        assert [w["label"] for w in result["words"]] == [e["entity"] for e in expected]
        scores = [float(e["score"]) for e in expected]
        assert [w["score"] for w in result["words"]] == pytest.approx(scores, abs=1e-5)
    assert tag([["the", "lazy", "fox"]]) == tag(["the lazy fox"])
    assert tag([""]) == [{"words": []}]
    # Words are taken as they are listed, whatever is in them.
    spaced = tag([["the", "10\u00a0000", "", "fox"]])[0]["words"]
    assert [(w["word"], w["start"]) for w in spaced] == [
        ("the", 0), ("10\u00a0000", 4), ("", 11), ("fox", 12)
    ]  # fmt: skip
    for wrong in (7, ["the", 3]):
        with pytest.raises(UsageError, match=r"list of words, not int|is no word"):
            tag([wrong])


@pytest.mark.parametrize("name", ["bert-embedder", "roberta-embedder"])
def test_embeddings_equal_the_references_mean(name: str, folders: dict[str, Path]) -> None:
    embed = opened(name, folders)
    kind = getattr(transformers, str(SPECS[name].model_class))
    theirs = kind.from_pretrained(folders[name], add_pooling_layer=False).eval()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folders[name])
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        hidden = theirs(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    expected = (mean / mean.norm(dim=-1, keepdim=True)).numpy()
    results = embed(TEXTS)
    assert [result["input"] for result in results] == TEXTS
    assert np.abs(np.array([r["embedding"] for r in results]) - expected).max() < 1e-5
    stored = np.load(io.BytesIO(embed.encode(results, ".npy")), allow_pickle=False)
    assert stored.dtype == np.float32 and np.abs(stored - expected).max() < 1e-5
    assert np.load(io.BytesIO(embed.encode([], ".npy"))).shape == (0, 36)
    assert [json.loads(line) for line in embed.encode(results, ".jsonl").splitlines()] == results
    assert json.loads(embed.show(results[0])) == results[0]


def recorded(pipe: Any) -> list[Mapping[str, Array]]:
    """The calls that the pipeline makes of its session from now on."""
    calls: list[Mapping[str, Array]] = []
    run = pipe.session.run

    def record(graph: str, inputs: Mapping[str, Array], state: Any = None) -> Any:
        calls.append(inputs)
        return run(graph, inputs, state)

    pipe.session.run = record
    return calls


def inputs_for(pipe: Any) -> list[str]:
    mask = pipe.processor.token(pipe.processor.mask_id)
    return [f"{text} {mask}" for text in TEXTS] if "Fill" in type(pipe).__name__ else TEXTS


def figures(results: Any) -> Any:
    """Results with their numbers rounded."""
    if isinstance(results, float):
        return round(results, 4)
    if isinstance(results, dict):
        return {key: figures(value) for key, value in results.items()}
    return [figures(item) for item in results] if isinstance(results, list) else results


@pytest.mark.parametrize("name", SPECS)
def test_batches_are_alike_in_length_and_in_the_given_order(
    name: str, folders: dict[str, Path]
) -> None:
    pipe = opened(name, folders)
    calls = recorded(pipe)
    inputs = inputs_for(pipe)
    results = pipe(inputs, batch_size=2)
    widths = [call["attention_mask"].sum(-1).tolist() for call in calls]
    assert [len(row) for row in widths] == [2, 2, 1]
    assert [n for row in widths for n in row] == sorted(n for row in widths for n in row)
    for call in calls:
        real = np.arange(call["input_ids"].shape[1]) < call["attention_mask"].sum(-1)[:, None]
        assert (call["attention_mask"] == real).all() and real.any(0).all()
        assert (call["input_ids"][~real] == pipe.processor.pad_id).all()
        assert (call["input_ids"][:, 0] == pipe.processor.cls_id).all()
        lasts = call["attention_mask"].sum(-1) - 1
        assert (call["input_ids"][np.arange(len(lasts)), lasts] == pipe.processor.sep_id).all()
        assert ("token_type_ids" in call) == name.startswith("bert")
    assert figures(results) == figures([pipe([text])[0] for text in inputs])
    assert figures(results) == figures(pipe(inputs))
    assert pipe([]) == []
    with pytest.raises(UsageError, match="batch_size must be at least 1"):
        pipe(inputs, batch_size=0)


@pytest.mark.parametrize("name", ["bert-classifier", "roberta-tagger", "bert-embedder"])
def test_long_inputs_are_cut(name: str, folders: dict[str, Path]) -> None:
    pipe = opened(name, folders)
    calls = recorded(pipe)
    [long] = pipe(["the dog " * 60])
    most = pipe.config.max_length
    assert calls[0]["input_ids"].shape == (1, most)
    assert calls[0]["input_ids"][0, -1] == pipe.processor.sep_id
    if name == "roberta-tagger":
        assert 0 < len(long["words"]) < 120
        scores = pipe.score([(["the", "dog"] * 60, ["low"] * 120)])
        assert sum(map(sum, scores.confusion.counts)) == len(long["words"])


@pytest.mark.parametrize("name", SPECS)
def test_a_tokenizer_of_another_model_is_refused(name: str, folders: dict[str, Path]) -> None:
    pipe = opened(name, folders)
    object.__setattr__(pipe.config, "vocab_size", 5)
    with pytest.raises(UsageError, match="the model knows only 5"):
        pipe(inputs_for(pipe))


@pytest.mark.parametrize("name", SPECS)
def test_an_export_gives_the_same(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own insides
        artifact = export(folders[name], tmp_path / "onnx")
    ours, theirs = opened(name, folders), load(tmp_path / "onnx", device="cpu")
    assert "CPUExecutionProvider" in theirs.session.provider
    swept = {case["name"] for case in artifact.manifest.receipt["cases"]}
    assert {"batch=5 length=17 padded", "batch=1 length=1"} <= swept
    probes = ours.probe(), theirs.probe()
    assert probes[0].keys() == probes[1].keys()
    for key, values in probes[0].items():
        assert values.dtype == np.int64 and len(values) >= 8 and len(set(values.tolist())) > 1
        assert (values == probes[1][key]).all()
    inputs = inputs_for(ours)
    assert figures(ours(inputs)) == figures(theirs(inputs))


def test_scores_of_the_classifier_and_the_tagger(folders: dict[str, Path]) -> None:
    classify = opened("bert-classifier", folders)
    found = [result["label"] for result in classify(TEXTS)]
    truth = [found[0], found[1], "none" if found[2] != "none" else "low", *found[3:]]
    scores = classify.score(list(zip(TEXTS, truth, strict=True)), batch_size=2)
    assert scores.metrics["accuracy"] == pytest.approx(4 / 5)
    tag = opened("bert-tagger", folders)
    examples = [(text.split(), ["low"] * len(text.split())) for text in TEXTS]
    labels = [word["label"] for result in tag(TEXTS) for word in result["words"]]
    scores = tag.score(examples)
    assert scores.metrics["accuracy"] == pytest.approx(labels.count("low") / len(labels))
    assert scores.confusion.labels == ("low", "middle", "high", "none")


def test_score_of_the_embedder_is_retrieval(folders: dict[str, Path]) -> None:
    embed = opened("bert-embedder", folders)
    assert embed.score([(text, text) for text in TEXTS]).metrics == {"retrieval_accuracy": 1.0}
    moved = [TEXTS[0], TEXTS[1], TEXTS[2], TEXTS[4], TEXTS[3]]  # two that have each other's
    scores = embed.score(list(zip(TEXTS, moved, strict=True)))
    assert scores.metrics == {"retrieval_accuracy": pytest.approx(3 / 5)}
    same = [("over", "the fox"), ("over", "over"), ("the fox", "over")]  # equal partners are one
    assert embed.score(same).metrics == {"retrieval_accuracy": pytest.approx(1 / 3)}
    with pytest.raises(UsageError, match="no examples"):
        embed.score([])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probes_do_not_depend_on_batches(dtype: torch.dtype, folders: dict[str, Path]) -> None:
    ours = opened("bert-tagger", folders)
    session = TorchSession(ours.session.graphs["model"].module.model.to(dtype))
    pipe: EncoderPipeline = type(ours)(session, ours.processor, ours.config)
    rows = dict(pipe.random_rows())
    assert [len(rows[n]) for n in sorted(rows)] == [1, 4, 7, 10, 14, 17, 20, 24]
    assert len(pipe.probe()["classes"]) == sum(len(values) for values in rows.values())
    tokens = Ragged(range(1, 2 + n % 5) for n in range(8))
    alone, beside = (dict(pipe.compute(tokens, batch_size=size)) for size in (1, 3))
    for number in range(8):
        allowed = 1e-5 if dtype == torch.float32 else 0.05
        np.testing.assert_allclose(alone[number], beside[number], rtol=0, atol=allowed)


def test_no_torch_is_needed() -> None:
    code = "import sys, cambrian_bert.pipeline; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
