"""Text generation: against transformers' generate and processors, and on a scripted engine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.generation import logits_process as reference

from cambrian.data.tokenizer import Tokenizer
from cambrian.errors import UsageError
from cambrian.generation import sampling as p
from cambrian.generation.config import GenerationConfig
from cambrian.runtime import Array, Session, State
from cambrian.runtime.torch import TorchSession
from cambrian_gpt.config import GPTConfig
from cambrian_gpt.model import GPT
from cambrian_gpt.pipeline import TextGeneration
from cambrian_gpt.weights import WEIGHTS

TEXT = "The quick brown fox jumps over the lazy dog. Größe, façade, 日本語, 🦊! " * 20
PROMPTS = ["The quick", "dog", "fox jumps over the lazy", "日本"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train("bpe", [TEXT], 290)


@pytest.fixture(scope="module")
def letters() -> Tokenizer:
    """One token a byte: every character beyond ASCII takes several."""
    return Tokenizer.train("bpe", ["a"], 257)


def config(tokenizer: Tokenizer, **changes: Any) -> GPTConfig:
    small = {"n_positions": 48, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
    names = {"vocab_size": tokenizer.vocab_size, "bos_token_id": 0, "eos_token_id": None}
    return GPTConfig(**{**small, **names, **changes})


@pytest.fixture(scope="module")
def generator(tokenizer: Tokenizer) -> TextGeneration:
    torch.manual_seed(0)
    settings = config(tokenizer)
    return TextGeneration(TorchSession(GPT(settings).eval()), tokenizer, settings)


class Script(Session):
    """An engine whose likeliest next token is that of a script, row by row."""

    provider = "script"
    signatures: Mapping[str, Any] = {}

    def __init__(self, rows: Sequence[Sequence[int]], vocab_size: int) -> None:
        self.rows, self.vocab_size = rows, vocab_size
        self.calls: list[Mapping[str, Array]] = []

    def run(
        self, graph: str, inputs: Mapping[str, Array], state: State | None = None
    ) -> tuple[dict[str, Array], State]:
        step = (state or {}).get("step", 0)
        self.calls.append(inputs)
        logits = np.zeros((*inputs["input_ids"].shape, self.vocab_size), np.float32)
        for row, script in enumerate(self.rows):
            logits[row, -1, script[step % len(script)]] = 9.0
        return {"logits": logits}, {"step": step + 1}

    def take(self, state: State, rows: Array) -> State:
        raise NotImplementedError

    def close(self) -> None: ...


def scripted(tokenizer: Tokenizer, *rows: Sequence[int], **changes: Any) -> TextGeneration:
    settings = config(tokenizer, **changes)
    return TextGeneration(Script(rows, tokenizer.vocab_size), tokenizer, settings)


def test_greedy_equals_transformers_token_for_token(tokenizer: Tokenizer) -> None:
    settings = config(tokenizer)
    values = {f: getattr(settings, f) for f in settings.__dataclass_fields__}
    torch.manual_seed(3)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**values)).eval()
    model = GPT(settings)
    model.load_state_dict(WEIGHTS.load(theirs.state_dict(), settings))
    generate = TextGeneration(TorchSession(model.eval()), tokenizer, settings)
    rows = tokenizer.encode_batch(PROMPTS)
    width = max(map(len, rows))
    assert len({len(row) for row in rows}) > 2
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    for options in ({}, {"repetition_penalty": 1.7}):
        expected = []
        for row, given in zip(ids, mask, strict=True):  # theirs penalises padding: a row alone
            kept = row[given.bool()][None]
            out = theirs.generate(
                kept,
                attention_mask=torch.ones_like(kept),
                max_new_tokens=16,
                do_sample=False,
                pad_token_id=0,
                **options,
            )
            expected.append(out[0, kept.shape[1] :].tolist())
        results = generate(PROMPTS, max_new_tokens=16, **options)
        assert [result["tokens"] for result in results] == expected
    batch = theirs.generate(
        ids, attention_mask=mask, max_new_tokens=16, do_sample=False, pad_token_id=0
    )
    ours = [result["tokens"] for result in generate(PROMPTS, max_new_tokens=16)]
    assert ours == batch[:, width:].tolist()
    eos = ours[0][7]
    ended = generate(PROMPTS, max_new_tokens=16, eos_token_id=eos)
    for result, whole in zip(ended, ours, strict=True):
        stop = whole.index(eos) + 1 if eos in whole else 16
        assert result["tokens"] == whole[:stop]
        assert result["finish"] == ("stop" if eos in whole else "length")


@pytest.mark.parametrize("early", [True, False, "never"])
@pytest.mark.parametrize(
    ("beams", "length", "repetition"), [(2, 1.0, 1.0), (4, 0.0, 1.3), (5, 2.0, 1.0)]
)
def test_beams_equal_transformers_in_tokens_and_score(
    tokenizer: Tokenizer, early: Any, beams: int, length: float, repetition: float
) -> None:
    settings = config(tokenizer)
    values = {f: getattr(settings, f) for f in settings.__dataclass_fields__}
    torch.manual_seed(3)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**values)).eval()
    model = GPT(settings)
    model.load_state_dict(WEIGHTS.load(theirs.state_dict(), settings))
    generate = TextGeneration(TorchSession(model.eval()), tokenizer, settings)
    greedy = generate(PROMPTS, max_new_tokens=12)
    options: dict[str, Any] = {
        "num_beams": beams,
        "length_penalty": length,
        "early_stopping": early,
        "repetition_penalty": repetition,
        "eos_token_id": [greedy[0]["tokens"][4], greedy[2]["tokens"][7]],
        "max_new_tokens": 12,
    }
    results = generate(PROMPTS, **options)
    for result, ids in zip(results, tokenizer.encode_batch(PROMPTS), strict=True):
        given = torch.tensor([ids])
        found = theirs.generate(
            given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
            **options,
        )
        new = found.sequences[0, len(ids) :].tolist()
        assert result["tokens"] == new[: len(result["tokens"])]
        assert len(new) == len(result["tokens"])
        assert abs(result["score"] - float(found.sequences_scores[0])) < 1e-4
        [alone] = generate([result["prompt"]], **options)
        assert alone["tokens"] == result["tokens"]
        assert "".join(generate.stream(result["prompt"], **options)) == generate.show(result)


def test_beams_keep_within_the_context(generator: TextGeneration) -> None:
    limit = generator.config.n_positions
    full, short = generator(["b" * (limit - 2), "b"], max_new_tokens=60, num_beams=3)
    assert len(full["tokens"]) == 3 and len(short["tokens"]) == limit
    assert short["tokens"] == generator(["b"], max_new_tokens=60, num_beams=3)[0]["tokens"]


@pytest.mark.parametrize("seed", range(3))
def test_processors_equal_transformers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = (rng.standard_normal((3, 500)) * 4).astype(np.float32)
    theirs = torch.from_numpy(scores)
    for k in (1, 7, 499, 500, 900):
        expected = reference.TopKLogitsWarper(k)(None, theirs.clone()).numpy()
        np.testing.assert_array_equal(p.keep_top_k(scores, k), expected)
    for top_p in (0.01, 0.3, 0.9, 0.999):
        expected = reference.TopPLogitsWarper(top_p)(None, theirs.clone()).numpy()
        np.testing.assert_array_equal(p.keep_top_p(scores, top_p), expected)
    ids = rng.integers(500, size=(3, 40))
    seen = np.zeros((3, 500), bool)
    np.put_along_axis(seen, ids, True, axis=1)
    penalise = reference.RepetitionPenaltyLogitsProcessor(1.3)
    expected = penalise(torch.from_numpy(ids), theirs.clone()).numpy()
    np.testing.assert_allclose(p.penalise(scores, seen, 1.3), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0},
        {"temperature": 0.5, "top_k": 5},
        {"temperature": 2.0, "top_k": 6, "top_p": 0.7},
    ],
)
def test_draws_follow_the_distribution_of_transformers(options: dict[str, Any]) -> None:
    settings = GenerationConfig(do_sample=True, **options)
    scores = np.random.default_rng(0).standard_normal((1, 12)).astype(np.float32)
    warped = reference.TemperatureLogitsWarper(settings.temperature)(None, torch.from_numpy(scores))
    if settings.top_k:
        warped = reference.TopKLogitsWarper(settings.top_k)(None, warped)
    if settings.top_p < 1:
        warped = reference.TopPLogitsWarper(settings.top_p)(None, warped)
    expected = warped.softmax(-1)[0].numpy()
    count = 40_000
    generator = np.random.Generator(np.random.Philox(0))
    drawn = p.choose(np.repeat(scores, count, axis=0), settings, [generator] * count)
    share = np.bincount(drawn, minlength=12) / count
    assert not share[expected == 0].any()
    assert np.abs(share - expected).max() < 5 * np.sqrt(0.25 / count)


def test_same_seed_same_text_whatever_the_batch(generator: TextGeneration) -> None:
    options = {"do_sample": True, "temperature": 1.5, "max_new_tokens": 12}
    first = generator(PROMPTS, seed=4, **options)
    assert first == generator(PROMPTS, seed=4, **options)
    assert first[:2] == generator(PROMPTS[:2], seed=4, **options)
    assert first != generator(PROMPTS, seed=5, **options)
    same = generator(["The quick"] * 2, seed=4, **options)
    assert same[0] != same[1]


def test_options_have_an_effect_and_are_checked(generator: TextGeneration) -> None:
    greedy = generator(["dog"], max_new_tokens=8)
    assert greedy == generator(["dog"], max_new_tokens=8, do_sample=True, top_k=1)
    assert greedy == generator(["dog"], max_new_tokens=8, do_sample=True, top_p=1e-6, top_k=0)
    with pytest.raises(UsageError, match="temperature"):
        generator(["dog"], temprature=0.5)
    for wrong in ({"temperature": 0.0}, {"top_p": 0.0}, {"max_new_tokens": 0}, {"stop": [""]}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            generator(["dog"], **wrong)
    with pytest.raises(UsageError, match="text, not int"):
        generator([3])
    assert generator([]) == []


def test_results_say_how_they_ended(letters: Tokenizer) -> None:
    words = letters.encode("one two three")
    run = scripted(letters, words, letters.encode("abc!defghijkl"))
    first, second = run(["x", "yy"], max_new_tokens=7, stop=["!"])
    assert first == {"prompt": "x", "text": "one two", "tokens": words[:7], "finish": "length"}
    assert second["text"] == "abc" and second["finish"] == "stop"
    assert letters.decode(second["tokens"]) == "abc!"
    assert len(run.session.calls) == 7  # type: ignore[attr-defined]
    [ended] = scripted(letters, [*words[:3], 0])(["x"], eos_token_id=[5, 0])
    assert ended["text"] == "one" and ended["finish"] == "stop"
    [own] = scripted(letters, [*words[:3], 0], eos_token_id=0)(["x"])
    assert own["text"] == "one"


def test_generation_ends_as_soon_as_all_rows_have(letters: Tokenizer) -> None:
    run = scripted(letters, letters.encode("ab."), letters.encode("a."))
    run(["x", "y"], stop=["."])
    assert len(run.session.calls) == 3  # type: ignore[attr-defined]
    assert [call["input_ids"].shape for call in run.session.calls] == [(2, 1)] * 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "stop", [["two"], ["o t"], ["three", "two"], ["never", "e tw"], ["x", "ö🦊"]]
)
def test_stop_strings_across_tokens(letters: Tokenizer, stop: list[str]) -> None:
    text = "one two three ö🦊"
    run = scripted(letters, letters.encode(text))
    options = {"stop": stop, "max_new_tokens": len(text.encode())}
    [result] = run(["x"], **options)
    at = min(text.find(s) for s in stop if s in text)
    assert (result["text"], result["finish"]) == (text[:at], "stop")
    prompt, *pieces = run.stream("x", **options)
    assert prompt == "x"
    assert "".join(pieces) == text[:at]  # nothing of the stop string was sent ahead
    assert all(pieces)


def test_the_first_of_several_stop_strings_counts(tokenizer: Tokenizer) -> None:
    words = map(tokenizer.decode, ([number] for number in range(tokenizer.vocab_size)))
    number, word = max(enumerate(words), key=lambda item: len(set(item[1])))
    assert len(set(word)) > 2  # one token in which two stop strings appear at once
    [result] = scripted(tokenizer, [number])(["x"], stop=[word[2], word[1]])
    assert result["text"] == word[: min(word.find(word[1]), word.find(word[2]))]


def test_what_only_resembles_a_stop_string_is_sent(letters: Tokenizer) -> None:
    run = scripted(letters, letters.encode("aab aabaac"))
    pieces = list(run.stream("x", stop=["aabaab", "aac!"], max_new_tokens=10))
    assert pieces == ["x", "aab ", "aabaac"]


def test_streams_hold_back_unfinished_characters(letters: Tokenizer) -> None:
    text = "aé日🦊b"
    pieces = list(scripted(letters, letters.encode(text)).stream("x", max_new_tokens=11))
    assert pieces == ["x", "a", "é", "日", "🦊", "b"]
    cut = list(scripted(letters, letters.encode(text)).stream("x", max_new_tokens=5))
    assert cut == ["x", "a", "é", "\ufffd"]  # at the end nothing is held back


def test_streams_join_to_the_text(generator: TextGeneration) -> None:
    for seed in range(4):
        for prompt in PROMPTS:
            options = {"do_sample": True, "seed": seed, "max_new_tokens": 20, "stop": ["o", "🦊"]}
            [result] = generator([prompt], **options)
            pieces = list(generator.stream(prompt, **options))
            assert "".join(pieces) == prompt + result["text"] == generator.show(result)


def test_an_unknown_option_of_a_stream_is_refused(generator: TextGeneration) -> None:
    with pytest.raises(UsageError, match="unknown key"):
        list(generator.stream("x", top=3))


def test_the_context_is_the_limit(generator: TextGeneration, tokenizer: Tokenizer) -> None:
    limit = generator.config.n_positions
    longest = "b" * limit
    assert len(tokenizer.encode(longest)) == limit
    full, short = generator([longest, "b"], max_new_tokens=60)
    assert len(full["tokens"]) == 1 and full["finish"] == "length"
    assert len(short["tokens"]) == limit and short["finish"] == "length"
    assert short == generator(["b"], max_new_tokens=60)[0]
    with pytest.raises(UsageError, match=f"Prompt 2 has {limit + 1} tokens.*at most {limit}"):
        generator(["b", longest + "b"])


def test_an_empty_prompt_starts_at_the_end_of_a_text(generator: TextGeneration) -> None:
    [result] = generator([""], max_new_tokens=4)
    assert len(result["tokens"]) == 4 and result["prompt"] == ""
    settings = generator.config
    endless = Tokenizer.train("char", ["abc"], 10)
    endless.eos_id = None
    run = TextGeneration(generator.session, endless, settings)
    with pytest.raises(UsageError, match="Prompt 2 is empty"):
        run(["a", ""])


def test_a_tokenizer_that_is_too_large_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="the model knows only 20"):
        scripted(tokenizer, [1], vocab_size=20)(["x"])


def test_probe_is_deterministic_and_fits_small_contexts(generator: TextGeneration) -> None:
    tokens = generator.probe()["tokens"]
    assert tokens.shape == (3, 16) and tokens.dtype == np.int64
    np.testing.assert_array_equal(tokens, generator.probe()["tokens"])
    for positions in (1, 4, 12):
        settings = config(generator.processor, n_positions=positions)
        run = TextGeneration(TorchSession(GPT(settings).eval()), generator.processor, settings)
        assert run.probe()["tokens"].shape == (3, positions + 1 - min(9, positions))


def test_defaults_come_from_the_config(tokenizer: Tokenizer) -> None:
    assert TextGeneration.default_options(config(tokenizer, eos_token_id=0)).eos_token_id == 0


def test_the_pipeline_and_the_plugin_need_no_torch() -> None:
    code = (
        "import sys, cambrian_gpt; assert not {'torch', 'numpy'} & sys.modules.keys();"
        "import cambrian_gpt.pipeline; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
