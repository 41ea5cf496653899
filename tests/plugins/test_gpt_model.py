"""GPT against transformers' GPT2LMHeadModel, and against what its mathematics promises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from cambrian.runtime.torch import TorchSession
from cambrian_gpt.config import GPTConfig
from cambrian_gpt.model import GPT
from cambrian_gpt.weights import WEIGHTS

TINY: dict[str, Any] = {
    "vocab_size": 97,
    "n_positions": 48,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "initializer_range": 0.2,  # large, so that a wrong detail shows in the logits
}
SHAPES: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "odd heads": {"n_embd": 35, "n_head": 5},
    "one head": {"n_head": 1, "n_layer": 1},
    "n_inner": {"n_inner": 21},
    "inverse layer": {"scale_attn_by_inverse_layer_idx": True, "n_layer": 4},
    "unscaled": {"scale_attn_weights": False},
    "gelu": {"activation_function": "gelu"},
    "gelu_fast": {"activation_function": "gelu_fast"},
    "gelu_pytorch_tanh": {"activation_function": "gelu_pytorch_tanh"},
    "relu": {"activation_function": "relu"},
    "epsilon": {"layer_norm_epsilon": 1e-2},
}


def tiny(**changes: Any) -> GPTConfig:
    return GPTConfig(**{**TINY, **changes})


def theirs(config: GPTConfig, seed: int = 0) -> transformers.GPT2LMHeadModel:
    """A random reference model, its biases and norms moved off their trivial start."""
    torch.manual_seed(seed)
    values = {f: getattr(config, f) for f in config.__dataclass_fields__}
    reference = transformers.GPT2LMHeadModel(transformers.GPT2Config(**values)).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name.endswith("bias") or "ln_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return reference


def ours(reference: transformers.GPT2LMHeadModel, config: GPTConfig) -> GPT:
    model = GPT(config)
    model.load_state_dict(WEIGHTS.load(reference.state_dict(), config))
    return model.eval()


def tokens(*shape: int, vocab: int = 97, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(vocab, size=shape))


@torch.no_grad()
def difference(config: GPTConfig, length: int) -> float:
    reference = theirs(config)
    ids = tokens(3, length, vocab=config.vocab_size)
    return float((ours(reference, config)(ids) - reference(ids).logits).abs().max())


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("length", [1, 48])
def test_logits_equal_the_reference(name: str, length: int) -> None:
    assert difference(tiny(**SHAPES[name]), length) < 1e-4


@torch.no_grad()
def test_padded_logits_equal_the_reference_and_those_without_padding() -> None:
    config = tiny()
    reference = theirs(config)
    model, ids = ours(reference, config), tokens(3, 12)
    mask = (torch.arange(12) >= torch.tensor([0, 3, 11])[:, None]).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(ids, mask)
    expected = reference(ids, attention_mask=mask, position_ids=positions).logits
    assert (logits - expected)[mask.bool()].abs().max() < 1e-4
    assert logits.isfinite().all()  # rows of padding included
    for row, pad in enumerate((0, 3, 11)):
        assert torch.allclose(logits[row, pad:], model(ids[row : row + 1, pad:])[0], atol=1e-5)


@torch.no_grad()
def test_padding_on_the_right_changes_nothing_before_it() -> None:
    model, ids = GPT(tiny()).eval(), tokens(1, 12)
    mask = (torch.arange(12) < 7).long()[None]
    assert torch.allclose(model(ids, mask)[:, :7], model(ids[:, :7]), atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_no_token_sees_the_future(training: bool) -> None:
    model = GPT(tiny(attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)).train(training)
    ids = tokens(2, 20)
    changed = ids.clone()
    changed[:, 11] = (ids[:, 11] + 1) % 97
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :11], after[:, :11])
    assert (before[:, 11:] != after[:, 11:]).any(-1).all()


@pytest.mark.parametrize("padded", [False, True])
def test_training_computes_what_evaluation_computes(padded: bool) -> None:
    """Plain attention and the fused kernel: the same logits and the same gradients."""
    model = GPT(tiny(attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)).train()
    ids = tokens(2, 48)
    mask = (torch.arange(48) >= torch.tensor([[0], [5]])).long() if padded else None
    results: list[list[torch.Tensor]] = []
    for mode in (True, False):
        logits = model.train(mode)(ids, mask)
        logits = logits if mask is None else logits[mask.bool()]
        gradients = torch.autograd.grad(logits.square().mean(), list(model.parameters()))
        results.append([logits.detach(), *gradients])
    for plain, fused in zip(*results, strict=True):
        assert plain.abs().max() > 0
        assert torch.allclose(plain, fused, atol=1e-5)


def test_dropout_follows_the_config_and_the_mode() -> None:
    ids = tokens(2, 10)
    still = GPT(tiny(attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)).train()
    assert torch.equal(still(ids), still(ids))
    for name in ("attn_pdrop", "resid_pdrop", "embd_pdrop"):
        rates = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, name: 0.5}
        model = GPT(tiny(**rates)).train()
        assert not torch.equal(model(ids), model(ids)), name
        assert torch.equal(model.eval()(ids), model(ids)), name


def test_initialisation_has_the_papers_scale() -> None:
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=512, n_positions=256, n_embd=128, n_layer=8, n_head=4)
    state = GPT(config).state_dict()
    for name, tensor in state.items():
        if name.endswith("bias"):
            assert not tensor.any(), name
        elif ".ln_" in name:
            assert (tensor == 1).all(), name
        else:
            std = 0.02 / math.sqrt(2 * 8) if "c_proj" in name else 0.02
            assert abs(float(tensor.std()) / std - 1) < 0.03, name
            assert abs(float(tensor.mean())) < std / 20, name


def test_default_config_is_gpt2_small() -> None:
    reference = transformers.GPT2Config()
    for name in GPTConfig.__dataclass_fields__:
        assert getattr(GPTConfig(), name) == getattr(reference, name), name
    with torch.device("meta"):
        assert sum(p.numel() for p in GPT(GPTConfig()).parameters()) == 124_439_808


def test_tied_embeddings_are_one_parameter() -> None:
    tied, untied = GPT(tiny()), GPT(tiny(tie_word_embeddings=False))
    assert tied.lm_head.weight is tied.transformer.wte.weight
    assert len(list(untied.parameters())) == len(list(tied.parameters())) + 1


def test_loss_is_the_references_and_ignores_what_it_should() -> None:
    config = tiny(attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)
    reference = theirs(config)
    model, ids = ours(reference, config), tokens(2, 20)
    labels = ids[:, 1:].clone()
    labels[0, 5:9] = -100
    shifted = torch.cat((ids[:, :1], labels), dim=1)  # the reference shifts by itself
    expected = reference(ids, labels=shifted).loss
    batch = {"input_ids": ids[:, :-1], "labels": labels}
    [update] = model.updates()
    losses = update.loss(batch)
    assert update.module is model and losses.keys() == {"loss"}
    assert torch.allclose(losses["loss"], expected, atol=1e-5)
    assert int(model.evaluate(batch)["count"]) == 2 * 19 - 4
    assert model.bfloat16().loss(batch)["loss"].dtype == torch.float32


def test_one_batch_is_learnt_by_heart() -> None:
    torch.manual_seed(0)
    model = GPT(tiny(initializer_range=0.02)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = tokens(2, 16)
    batch = {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}
    first = model.loss(batch)["loss"].item()
    assert abs(first - math.log(97)) < 0.2
    for _ in range(80):
        optimizer.zero_grad()
        model.loss(batch)["loss"].backward()
        optimizer.step()
    assert model.eval().loss(batch)["loss"].item() < 0.1


def test_decoder_signature_is_optimums() -> None:
    [graph] = GPT(tiny(n_layer=1)).graphs()
    inputs = {port.name: (port.dtype, port.shape) for port in graph.signature.inputs}
    cache = ("float32", ("batch", 4, "past", 8))
    assert inputs == {
        "input_ids": ("int64", ("batch", "sequence")),
        "attention_mask": ("int64", ("batch", "past + sequence")),
        "position_ids": ("int64", ("batch", "sequence")),
        "past_key_values.0.key": cache,
        "past_key_values.0.value": cache,
    }
    assert [(port.name, port.shape) for port in graph.signature.outputs] == [
        ("logits", ("batch", "sequence", 97)),
        ("present.0.key", ("batch", 4, "past + sequence", 8)),
        ("present.0.value", ("batch", 4, "past + sequence", 8)),
    ]
    assert graph.signature.state == {
        "present.0.key": "past_key_values.0.key",
        "present.0.value": "past_key_values.0.value",
    }
    [half] = GPT(tiny(n_layer=1)).half().graphs()
    floats = {port.dtype for port in (*half.signature.inputs, *half.signature.outputs)}
    assert floats == {"int64", "float16"}


@pytest.mark.parametrize("pads", [(0, 0), (4, 0)])
@pytest.mark.parametrize("split", [(5, 1), (1, 5), (5, 9), (17, 1, 1, 1)])
def test_cached_calls_equal_one_call(split: tuple[int, ...], pads: tuple[int, int]) -> None:
    model, length = GPT(tiny()).eval(), sum(split)
    session, ids = TorchSession(model), tokens(2, length).numpy()
    mask = (np.arange(length) >= np.array(pads)[:, None]).astype(np.int64)
    positions = (mask.cumsum(-1) - 1).clip(min=0)
    whole, _ = session.run(
        "decoder", {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    )
    state, pieces, start = None, [], 0
    for width in split:
        end = start + width
        outputs, state = session.run(
            "decoder",
            {
                "input_ids": ids[:, start:end],
                "attention_mask": mask[:, :end],
                "position_ids": positions[:, start:end],
            },
            state,
        )
        pieces.append(outputs["logits"])
        start = end
    real = mask.astype(bool)
    assert np.abs(whole["logits"] - np.concatenate(pieces, axis=1))[real].max() < 1e-5


@torch.no_grad()
def test_decoder_equals_the_reference_with_cache_and_padding() -> None:
    config = tiny()
    reference = theirs(config)
    model = ours(reference, config)
    session = TorchSession(model)
    for case in model.cases():
        state, past = None, None
        for name, inputs in case.calls:
            outputs, state = session.run(name, inputs, state)
            given = {key: torch.from_numpy(np.ascontiguousarray(v)) for key, v in inputs.items()}
            expected = reference(**given, past_key_values=past, use_cache=True)
            past = expected.past_key_values
            real = inputs["attention_mask"][:, -inputs["input_ids"].shape[1] :].astype(bool)
            gap = np.abs(outputs["logits"] - expected.logits.numpy())[real].max()
            assert gap < 1e-4, case.name
            assert np.isfinite(outputs["logits"]).all(), case.name


def test_half_precision_padding_gives_no_nan() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        model = GPT(tiny(initializer_range=0.02)).eval().to(dtype)
        mask = (torch.arange(9) >= torch.tensor([[0], [8]])).long()
        assert model(tokens(2, 9), mask).isfinite().all()


def test_cases_sweep_what_they_promise() -> None:
    cases = {case.name: case.calls for case in GPT(tiny()).cases()}
    for batch in (1, 2, 5):
        for length in (1, 2, 17, 48):
            assert f"batch={batch} length={length}" in cases
        for length in (1, 2, 17, 43):
            assert f"batch={batch} length={length} cached" in cases
    assert "batch=5 length=48 padded" in cases and "batch=2 length=1 padded cached" in cases
    assert "batch=2 length=1 padded" not in cases
    assert len(cases) == 3 * 8 + 2 * 7
    for name, calls in cases.items():
        past = 0
        for graph, inputs in calls:
            batch, length = inputs["input_ids"].shape
            assert graph == "decoder" and inputs["input_ids"].dtype == np.int64
            assert inputs["attention_mask"].shape == (batch, past + length)
            assert inputs["position_ids"].max() < 48
            past += length
        assert past <= 48 and len(calls) == 1 + ("cached" in name)
        pads = (calls[0][1]["attention_mask"] == 0).sum(-1)
        assert pads.min() == 0 and (pads.max() > 0) == ("padded" in name)
    assert [c.name for c in GPT(tiny(n_positions=3)).cases()][:3] == [
        "batch=1 length=1",
        "batch=1 length=2",
        "batch=1 length=3",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_embd": 33}, "multiple of n_head"),
        ({"n_layer": 0}, "n_layer must be at least 1"),
        ({"n_inner": 0}, "n_inner must be"),
        ({"attn_pdrop": 1.0}, r"attn_pdrop must be in \[0, 1\)"),
        ({"layer_norm_epsilon": math.nan}, "layer_norm_epsilon must be positive"),
    ],
)
def test_impossible_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)
