"""Text to text: against transformers' generate, token for token, and exported."""

from __future__ import annotations

import builtins
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import transformers

from cambrian import __version__
from cambrian.api import export, load
from cambrian.artifact import Artifact, Manifest
from cambrian.checkpoint import save_description, save_weights
from cambrian.data.tokenizer import Tokenizer, fitted
from cambrian.errors import UsageError
from cambrian.runtime.torch import TorchSession
from cambrian_onnx.exporter import OrtExporter
from cambrian_onnx.runtime import OnnxSession
from cambrian_t5 import register_models
from cambrian_t5.config import T5Config
from cambrian_t5.data import SPECIALS, batch
from cambrian_t5.metrics import compare
from cambrian_t5.model import T5
from cambrian_t5.pipeline import Text2Text
from cambrian_t5.weights import WEIGHTS

[SPEC] = register_models()
TEXT = "The quick brown fox jumps over the lazy dog. Größe, façade, 日本語, 🦊! " * 20
INPUTS = ["The quick", "dog", "fox jumps over the lazy", "", "日本"]
SHAPES: dict[str, dict[str, Any]] = {
    "v1.0": {},
    "v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_heads": 3},
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return fitted("bpe", 400, [TEXT], SPECIALS)


def config(tokenizer: Tokenizer, **changes: Any) -> T5Config:
    small = {"d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4}
    names = {"vocab_size": tokenizer.vocab_size, "relative_attention_max_distance": 24}
    return T5Config(**{**small, **names, **changes})


def reference(settings: T5Config, seed: int) -> transformers.T5ForConditionalGeneration:
    torch.manual_seed(seed)
    values = transformers.T5Config(**msgspec.to_builtins(settings))
    model = transformers.T5ForConditionalGeneration(values).eval()
    if not settings.tie_word_embeddings:
        head = torch.randn(settings.vocab_size, settings.d_model) * 0.5
        model.lm_head.weight = torch.nn.Parameter(head)
    return model


def pipeline(tokenizer: Tokenizer, seed: int = 0, **changes: Any) -> Text2Text:
    settings = config(tokenizer, **changes)
    model = T5(settings)
    model.load_state_dict(WEIGHTS.load(reference(settings, seed).state_dict(), settings))
    return Text2Text(TorchSession(model.eval()), tokenizer, settings)


def theirs(run: Text2Text, seed: int = 0, **options: Any) -> list[tuple[list[int], float]]:
    """What transformers generates for INPUTS, padded: the new tokens and the score of each."""
    rows = run._encode(INPUTS)
    width = max(map(len, rows))
    assert len({len(row) for row in rows}) > 3
    model = reference(run.config, seed)
    out = model.generate(
        input_ids=torch.tensor([row + [0] * (width - len(row)) for row in rows]),
        attention_mask=torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows]),
        max_new_tokens=12,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )
    ends = options.get("eos_token_id", 1)
    ends = [ends] if isinstance(ends, int) else ends
    tokens = [
        row[: next((n + 1 for n, token in enumerate(row) if token in ends), len(row))]
        for row in out.sequences[:, 1:].tolist()
    ]
    scores = out.get("sequences_scores")
    return list(zip(tokens, [0.0] * len(rows) if scores is None else scores.tolist(), strict=True))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("penalty", [1.0, 1.6])
def test_greedy_equals_transformers_token_for_token(
    tokenizer: Tokenizer, name: str, penalty: float
) -> None:
    run = pipeline(tokenizer, **SHAPES[name])
    options = {"repetition_penalty": penalty}
    whole = run(INPUTS, max_new_tokens=12, eos_token_id=[], **options)
    eos = whole[0]["tokens"][5]
    results = run(INPUTS, max_new_tokens=12, eos_token_id=eos, **options)
    expected = theirs(run, eos_token_id=eos, **options)
    assert [result["tokens"] for result in results] == [tokens for tokens, _ in expected]
    assert {result["finish"] for result in results} == {"stop", "length"}
    for result, item in zip(results, INPUTS, strict=True):
        assert result.keys() == {"input", "text", "tokens", "finish"} and result["input"] == item
        alone = run([item], max_new_tokens=12, eos_token_id=eos, **options)
        assert alone == [result]
        assert (result["finish"] == "stop") == (result["tokens"][-1] == eos)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("early", [True, False, "never"])
@pytest.mark.parametrize(
    ("beams", "length", "repetition"), [(2, 1.0, 1.0), (4, 0.0, 1.0), (4, 2.0, 1.4), (7, -1.0, 1.0)]
)
def test_beams_equal_transformers_in_tokens_and_score(
    tokenizer: Tokenizer, name: str, early: Any, beams: int, length: float, repetition: float
) -> None:
    run = pipeline(tokenizer, seed=1, **SHAPES[name])
    greedy = run(INPUTS, max_new_tokens=12, eos_token_id=[])
    options = {
        "num_beams": beams,
        "length_penalty": length,
        "early_stopping": early,
        "repetition_penalty": repetition,
        "eos_token_id": [greedy[0]["tokens"][4], greedy[2]["tokens"][7]],
    }
    results = run(INPUTS, max_new_tokens=12, **options)
    for result, (tokens, score) in zip(results, theirs(run, 1, **options), strict=True):
        assert result["tokens"] == tokens
        assert abs(result["score"] - score) < 1e-4 * max(1, abs(score))
        [alone] = run([result["input"]], max_new_tokens=12, **options)
        assert alone["tokens"] == tokens and abs(alone["score"] - score) < 1e-4 * max(1, abs(score))


def test_a_stop_string_cuts_what_beams_found(tokenizer: Tokenizer) -> None:
    run = pipeline(tokenizer)
    [whole] = run(["dog"], max_new_tokens=8, num_beams=3)
    assert len(whole["text"]) > 3
    [cut] = run(["dog"], max_new_tokens=8, num_beams=3, stop=[whole["text"][2:4]])
    assert cut["text"] == whole["text"][: whole["text"].index(whole["text"][2:4])]
    assert cut["finish"] == "stop" and cut["score"] == whole["score"]


def test_streams_join_to_the_text(tokenizer: Tokenizer) -> None:
    run = pipeline(tokenizer)
    for options in ({}, {"do_sample": True, "seed": 3}, {"num_beams": 3}):
        for item in INPUTS:
            [result] = run([item], max_new_tokens=10, **options)
            assert "".join(run.stream(item, max_new_tokens=10, **options)) == result["text"]
            assert run.show(result) == result["text"]


def test_same_seed_same_text_whatever_the_batch(tokenizer: Tokenizer) -> None:
    run, options = pipeline(tokenizer), {"do_sample": True, "max_new_tokens": 10}
    first = run(INPUTS, seed=4, **options)
    assert first == run(INPUTS, seed=4, **options)
    assert first[:2] == run(INPUTS[:2], seed=4, **options)
    assert first != run(INPUTS, seed=5, **options)


def test_the_encoder_runs_once(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    run, graphs = pipeline(tokenizer), list[str]()
    inner = run.session.run
    monkeypatch.setattr(run.session, "run", lambda g, *a: graphs.append(g) or inner(g, *a))
    for beams in (1, 3):
        graphs.clear()
        run(INPUTS, max_new_tokens=6, num_beams=beams, eos_token_id=[])
        assert graphs == ["encoder"] + ["decoder"] * 6


def test_the_prefix_stands_before_every_input(tokenizer: Tokenizer) -> None:
    plain, prefixed = pipeline(tokenizer), pipeline(tokenizer, task_prefix="fox: ")
    expected = plain([f"fox: {item}" for item in INPUTS], max_new_tokens=6)
    results = prefixed(INPUTS, max_new_tokens=6)
    assert [r["tokens"] for r in results] == [r["tokens"] for r in expected]
    assert [r["input"] for r in results] == INPUTS


def test_gaps_are_read_and_written_as_sentinels(tokenizer: Tokenizer) -> None:
    run = pipeline(tokenizer)
    [ids] = run._encode(["The <extra_id_0> fox"])
    gap = tokenizer.id("<extra_id_0>")
    assert gap in ids and ids[-1] == run.config.eos_token_id
    words = [gap, *tokenizer.encode("quick brown"), tokenizer.id("<extra_id_1>"), 1]
    assert run._decode(words) == "<extra_id_0> quick brown <extra_id_1>"
    assert run._decode(tokenizer.encode(" lazy dog")) == " lazy dog"
    longer = [*tokenizer.encode(" lazy dog"), tokenizer.id("<extra_id_1>")]
    assert run._decode(longer) == " lazy dog <extra_id_1>"  # more of it, and nothing else
    assert run._decode([]) == ""


def test_inputs_and_options_are_checked(tokenizer: Tokenizer) -> None:
    run = pipeline(tokenizer)
    assert run([]) == []
    with pytest.raises(UsageError, match="An input is a text, not int"):
        run([3])
    with pytest.raises(UsageError, match=r"unknown key 'beams'"):
        run(["x"], beams=3)
    with pytest.raises(UsageError, match="num_beams"):
        run(["x"], num_beams=0)
    with pytest.raises(UsageError, match="no examples"):
        run.score([])
    settings = config(tokenizer, vocab_size=150)
    small = Text2Text(TorchSession(T5(settings).eval()), tokenizer, settings)
    with pytest.raises(UsageError, match="the model knows only 150"):
        small([TEXT])


def test_defaults_come_from_the_config(tokenizer: Tokenizer) -> None:
    options = Text2Text.default_options(config(tokenizer, eos_token_id=7, decoder_start_token_id=5))
    assert (options.eos_token_id, options.decoder_start_token_id) == (7, 5)


def test_a_decoder_starts_with_what_the_options_say(tokenizer: Tokenizer) -> None:
    run = pipeline(tokenizer, **SHAPES["v1.0"])
    model = reference(run.config, 0)
    ids = torch.tensor([run._encode([TEXT])[0]])
    theirs = model.generate(ids, max_new_tokens=8, do_sample=False, decoder_start_token_id=9)
    given = {"max_new_tokens": 8, "decoder_start_token_id": 9}
    assert run([TEXT], **given)[0]["tokens"] == theirs[0, 1:].tolist()
    assert run([TEXT], max_new_tokens=8)[0]["tokens"] != theirs[0, 1:].tolist()
    with pytest.raises(UsageError, match="decoder_start_token_id must be one of"):
        run([TEXT], decoder_start_token_id=run.config.vocab_size)


@pytest.mark.parametrize("name", SHAPES)
def test_an_export_writes_the_same_text(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    settings = config(tokenizer, **SHAPES[name], task_prefix="say: ", num_layers=1)
    torch.manual_seed(0)
    model = T5(settings).eval()
    save_description(tmp_path / "model", SPEC, settings, tokenizer, __version__)
    save_weights(tmp_path / "model", SPEC, settings, model)
    artifact = export(tmp_path / "model", tmp_path / "onnx")
    names = {case.name for case in model.cases()}
    assert names <= {case["name"] for case in artifact.manifest.receipt["cases"]}
    assert artifact.manifest.receipt["max_abs_diff"] < 1e-4
    ours, exported = (load(tmp_path / folder, device="cpu") for folder in ("model", "onnx"))
    probes = [run.probe() for run in (ours, exported)]
    for key in ("greedy", "beams"):
        assert probes[0][key].shape == (3, 16) and probes[0][key].dtype == np.int64
        np.testing.assert_array_equal(probes[0][key], probes[1][key])
    assert (probes[0]["greedy"] != probes[0]["beams"]).any()
    for options in ({}, {"num_beams": 4}, {"do_sample": True, "seed": 3, "top_p": 0.9}):
        want, got = (run(INPUTS, max_new_tokens=9, **options) for run in (ours, exported))
        for one, other in zip(want, got, strict=True):
            assert one.pop("score", 0) == pytest.approx(other.pop("score", 0), abs=1e-4)
            assert one == other
        if "do_sample" not in options:
            alone = [exported([item], max_new_tokens=9, **options)[0] for item in INPUTS]
            assert [result["tokens"] for result in alone] == [result["tokens"] for result in want]


@pytest.mark.parametrize("name", SHAPES)
def test_likelihood_is_the_loss_of_the_labels(
    name: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    settings = config(tokenizer, **SHAPES[name], num_layers=1)
    torch.manual_seed(0)
    model = T5(settings).eval()
    rows = [[*tokenizer.encode_batch([item])[0], 1] for item in INPUTS]
    found = batch(rows, [[*row[::-1], 1] for row in rows], settings.pad_token_id)
    want = model.evaluate({key: torch.from_numpy(value) for key, value in found.items()})
    graphs = OrtExporter().export(model, tmp_path, precision="float32")
    assert graphs["decoder"].signature.outputs[0].shape[1] == 1  # it reads token by token
    manifest = Manifest(
        format="onnx-ort",
        architecture="t5",
        task=SPEC.task,
        precision="float32",
        graphs=graphs,
        files={},
        receipt={},
        cambrian=__version__,
    )
    for session in (TorchSession(model), OnnxSession(Artifact(tmp_path, manifest), "cpu")):
        total, count = Text2Text(session, tokenizer, settings).likelihood(found)
        assert count == want["count"]
        assert total / count == pytest.approx(float(want["loss"]), rel=1e-5)


def test_scores_are_those_of_the_packages() -> None:
    import sacrebleu

    found = ["the cat sat on the mat", "a dog barks loudly here", "same as it was"]
    expected = ["the cat is on the mat", "the dog barks very loudly", "same as it was"]
    metrics = compare(found, expected).metrics
    assert metrics["bleu"] == sacrebleu.corpus_bleu(found, [expected]).score
    assert metrics["chrf"] == sacrebleu.corpus_chrf(found, [expected]).score
    assert metrics["exact_match"] == 1 / 3
    # ROUGE-L by hand: 5 of 6 words in order, 3 of 5, all
    assert metrics["rougeL"] == pytest.approx((5 / 6 + 3 / 5 + 1) / 3)
    assert compare(["Кот für дом_2"], ["кот für дом 2"]).metrics["rougeL"] == 1
    assert compare(["кот"], ["дом"]).metrics["rougeL"] == 0
    perfect = compare(expected, expected).metrics
    assert perfect == pytest.approx({"bleu": 100, "chrf": 100, "rougeL": 1, "exact_match": 1})


def test_score_generates_for_every_example(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pipeline(tokenizer)
    inputs = [f"{text} {n}" for n in range(9) for text in INPUTS]
    texts = [result["text"] for result in run(inputs, max_new_tokens=5)]
    scores = run.score(list(zip(inputs, texts, strict=True)), max_new_tokens=5)
    assert scores.metrics["exact_match"] == 1
    wrong = run.score([(inputs[0], texts[0] + "x"), (inputs[1], texts[1])], max_new_tokens=5)
    assert wrong.metrics["exact_match"] == 0.5


@pytest.mark.parametrize("missing", ["sacrebleu", "rouge_score"])
def test_without_the_extra_exact_matches_are_counted(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".", maxsplit=1)[0] == missing:
            raise ModuleNotFoundError(f"No module named '{missing}'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert compare(["a", "b"], ["a", "c"]).metrics == {"exact_match": 0.5}


def test_the_pipeline_and_the_plugin_need_no_torch() -> None:
    code = (
        "import sys, cambrian_t5; assert not {'torch', 'numpy'} & sys.modules.keys();"
        "import cambrian_t5.pipeline; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
