"""T5 against transformers' T5ForConditionalGeneration, and what its mathematics promises."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5Attention

from cambrian import layers
from cambrian.runtime.torch import TorchSession
from cambrian.training.worker import reduced_copy
from cambrian_t5 import attention
from cambrian_t5.config import T5Config
from cambrian_t5.model import T5
from cambrian_t5.weights import WEIGHTS

TINY: dict[str, Any] = {
    "vocab_size": 97,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_max_distance": 40,
}
FIRST: dict[str, Any] = {}  # T5 1.0
SECOND: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}  # 1.1
SHAPES: dict[str, dict[str, Any]] = {
    "v1.0": FIRST,
    "v1.1": SECOND,
    "v1.1, narrow heads": {**SECOND, "num_heads": 3},
    "v1.0, wide heads": {"num_heads": 6, "d_kv": 11},
    "gelu": {"feed_forward_proj": "gelu"},
    "uneven depth": {"num_layers": 1, "num_decoder_layers": 3},
    "scaled, untied": {"tie_word_embeddings": False, "scale_decoder_outputs": True},
    "tied in name only": {"scale_decoder_outputs": False},
    "buckets": {"relative_attention_num_buckets": 10, "relative_attention_max_distance": 20},
    "epsilon": {"layer_norm_epsilon": 1e-2},
}


def tiny(**changes: Any) -> T5Config:
    return T5Config(**{**TINY, **changes})


def still(**changes: Any) -> T5Config:
    return tiny(dropout_rate=0.0, **changes)


def theirs(config: T5Config, seed: int = 0) -> transformers.T5ForConditionalGeneration:
    """A random reference model; its norms are moved off one, and an untied head off the rest."""
    torch.manual_seed(seed)
    values = msgspec.to_builtins(config)
    reference = transformers.T5ForConditionalGeneration(transformers.T5Config(**values)).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if "layer_norm" in name or "relative" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    if not config.tie_word_embeddings:
        head = torch.nn.Parameter(torch.randn_like(reference.lm_head.weight))
        reference.lm_head.weight = head
    return reference


def ours(reference: transformers.T5ForConditionalGeneration, config: T5Config) -> T5:
    model = T5(config)
    model.load_state_dict(WEIGHTS.load(reference.state_dict(), config))
    return model.eval()


def tokens(*shape: int, vocab: int = 97, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(vocab, size=shape))


def mask_of(width: int, *lengths: int) -> Tensor:
    return (torch.arange(width) < torch.tensor(lengths)[:, None]).long()


def batch_of(rows: int = 2, source: int = 9, target: int = 7) -> dict[str, Tensor]:
    labels = tokens(rows, target, seed=2)
    labels[-1, target // 2 :] = -100
    lengths = (source, *range(source - 1, source - rows, -1))
    return {
        "input_ids": tokens(rows, source),
        "attention_mask": mask_of(source, *lengths),
        "labels": labels,
    }


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("source", "target"), [(1, 1), (60, 55)])
@torch.no_grad()
def test_logits_equal_the_reference(name: str, source: int, target: int) -> None:
    config = tiny(**SHAPES[name])
    reference = theirs(config)
    ids, mask = tokens(3, source), mask_of(source, source, source // 3 + 1, 1)
    given = tokens(3, target, seed=1)
    expected = reference(input_ids=ids, attention_mask=mask, decoder_input_ids=given).logits
    model = ours(reference, config)
    assert (model(ids, mask, given) - expected).abs().max() < 1e-4
    assert expected.abs().max() > 1
    for row, length in enumerate((source, source // 3 + 1, 1)):  # padding changes nothing
        alone = model(ids[row, None, :length], mask[row, None, :length], given[row, None])
        assert torch.allclose(alone[0], model(ids, mask, given)[row], atol=1e-4)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("count", "limit"), [(32, 128), (32, 40), (8, 16), (10, 20), (4, 1000)])
def test_buckets_equal_the_reference(bidirectional: bool, count: int, limit: int) -> None:
    config = tiny(relative_attention_num_buckets=count, relative_attention_max_distance=limit)
    distance = torch.arange(-3000, 3001)
    expected = T5Attention._relative_position_bucket(distance, bidirectional, count, limit)
    table = attention.buckets(config, bidirectional)
    assert torch.equal(table[distance.clamp(-limit, limit) + limit], expected)
    assert len(expected.unique()) > count // 2 - 2 and int(table.max()) < count


@pytest.mark.parametrize("training", [False, True])
def test_the_decoder_cannot_see_the_future(training: bool) -> None:
    model = T5(still()).train(training)
    ids, mask, given = tokens(2, 9), mask_of(9, 9, 4), tokens(2, 20, seed=1)
    changed = given.clone()
    changed[:, 11] = (given[:, 11] + 1) % 97
    before, after = model(ids, mask, given), model(ids, mask, changed)
    assert torch.equal(before[:, :11], after[:, :11])
    assert (before[:, 11:] != after[:, 11:]).any(-1).all()


def test_the_encoder_sees_both_ways_and_the_decoder_sees_all_of_it() -> None:
    model = T5(still()).eval()
    ids, mask, given = tokens(1, 9), mask_of(9, 9), tokens(1, 5, seed=1)
    logits = model(ids, mask, given)
    for at in (0, 8):
        changed = ids.clone()
        changed[:, at] = (ids[:, at] + 1) % 97
        one, other = (model.encoder(model.shared(x), mask) for x in (ids, changed))
        assert (one != other).any(-1).all()
        assert (model(changed, mask, given) != logits).any(-1).all()


@pytest.mark.parametrize("changes", [FIRST, SECOND])
def test_training_computes_what_evaluation_computes(
    changes: dict[str, Any],
) -> None:
    """Plain attention and the fused kernel: the same loss and the same gradients."""
    model, batch = T5(still(**changes)).train(), batch_of()
    found = torch.autograd.grad(model.loss(batch)["loss"], list(model.parameters()))
    expected = torch.autograd.grad(model.eval().loss(batch)["loss"], list(model.parameters()))
    for one, other in zip(found, expected, strict=True):
        assert one.abs().max() > 0
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("changes", [FIRST, SECOND])
def test_gradients_are_the_references(changes: dict[str, Any]) -> None:
    config = still(**changes)
    reference = theirs(config)
    model, batch = ours(reference, config).train(), batch_of()
    model.loss(batch)["loss"].backward()
    reference.train()(**batch).loss.backward()
    expected = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
        assert torch.allclose(parameter.grad, expected[name].grad, atol=1e-5), name


@pytest.mark.parametrize("changes", [FIRST, SECOND])
def test_loss_is_the_references_and_ignores_what_it_should(changes: dict[str, Any]) -> None:
    config = still(**changes)
    reference = theirs(config)
    model, batch = ours(reference, config), batch_of()
    expected = reference(**batch)
    [update] = model.updates()
    losses = update.loss(batch)
    assert update.module is model and losses.keys() == {"loss"}
    assert torch.allclose(losses["loss"], expected.loss, atol=1e-5)
    found, labels = model.evaluate(batch), batch["labels"]
    right = (expected.logits.argmax(-1) == labels)[labels != -100].float().mean()
    assert torch.allclose(found["loss"], expected.loss, atol=1e-5)
    assert found["accuracy"] == right and int(found["count"]) == int((labels != -100).sum())
    assert model.derive({"loss": 2.0}) == {"perplexity": math.exp(2.0)}


def test_label_smoothing_is_for_training_only() -> None:
    smooth, batch = T5(still(label_smoothing=0.3)), batch_of()
    plain = T5(still())
    plain.load_state_dict(smooth.state_dict())
    logits, labels = plain._labelled(batch)
    logs = logits.log_softmax(-1)
    expected = -(0.7 * logs.gather(1, labels[:, None])[:, 0] + 0.3 * logs.mean(-1)).mean()
    assert torch.allclose(smooth.loss(batch)["loss"], expected, atol=1e-5)
    found = smooth.evaluate(batch)["loss"]
    assert torch.equal(found, plain.evaluate(batch)["loss"])
    # The loss sums in another order, so that the last bit may differ.
    assert torch.allclose(found, plain.loss(batch)["loss"], rtol=1e-6)


def test_dropout_follows_the_config_and_the_mode() -> None:
    batch = batch_of()
    model = T5(tiny(dropout_rate=0.5)).train()
    assert not torch.equal(model.loss(batch)["loss"], model.loss(batch)["loss"])
    assert torch.equal(model.eval().loss(batch)["loss"], model.loss(batch)["loss"])
    model = T5(still()).train()
    assert torch.equal(model.loss(batch)["loss"], model.loss(batch)["loss"])


def test_dropout_is_where_the_reference_has_it() -> None:
    """As many masks of the same shapes are drawn, in the same order."""
    config = tiny(dropout_rate=0.1)
    reference = theirs(config)
    reference.set_attn_implementation("eager")
    model, batch = ours(reference, config).train(), batch_of()
    shapes: list[list[tuple[int, ...]]] = []
    real = F.dropout
    with pytest.MonkeyPatch.context() as patch:
        for network in (model, reference.train()):
            drawn: list[tuple[int, ...]] = []

            def dropout(x: Tensor, p: float = 0.5, *a: Any, drawn: Any = drawn, **k: Any) -> Tensor:
                assert p == 0.1
                drawn.append(tuple(x.shape))
                return real(x, p, *a, **k)

            patch.setattr(F, "dropout", dropout)
            patch.setattr(layers, "drop", dropout)
            network.loss(batch) if network is model else network(**batch)
            shapes.append(drawn)
    assert shapes[0] == shapes[1] and len(shapes[0]) == 2 * 2 + 2 * 4 + 2 * 6


def test_initialisation_is_mesh_tensorflows() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 500, "d_model": 128, "d_kv": 48, "d_ff": 300, "num_layers": 3}
    for changes in (FIRST, SECOND):
        config = tiny(**sizes, **changes, initializer_factor=0.5)
        state = T5(config).state_dict()
        reference = transformers.T5ForConditionalGeneration(
            transformers.T5Config(**msgspec.to_builtins(config))
        ).state_dict()
        for name, tensor in state.items():
            if "layer_norm" in name:
                assert (tensor == 0.5).all() and (reference[name] == 0.5).all(), name
                continue
            # The reference leaves an untied head at 1, which no T5 was ever trained from.
            untied = name == "lm_head.weight" and not config.tie_word_embeddings
            std = 0.5 * 128**-0.5 if untied else float(reference[name].std())
            near = 0.2 if "relative" in name else 0.05
            assert abs(float(tensor.std()) / std - 1) < near, name
            assert abs(float(tensor.mean())) < std * near, name


def test_default_config_is_t5_small() -> None:
    reference = transformers.T5Config(decoder_start_token_id=0)
    skipped = {"n_positions", "label_smoothing", "task_prefix", "num_decoder_layers"}
    for name in {field.name for field in dataclasses.fields(T5Config)} - skipped:
        if name == "scale_decoder_outputs":
            assert reference.scale_decoder_outputs
        else:
            assert getattr(T5Config(), name) == getattr(reference, name), name
    with torch.device("meta"):
        assert sum(p.numel() for p in T5(T5Config()).parameters()) == 60_506_624


def test_tied_embeddings_are_one_parameter() -> None:
    tied, untied = T5(tiny()), T5(tiny(tie_word_embeddings=False))
    assert tied.lm_head.weight is tied.shared.weight
    assert len(list(untied.parameters())) == len(list(tied.parameters())) + 1
    assert tied.config.output_scale == 32**-0.5 and untied.config.output_scale == 1


@pytest.mark.parametrize("changes", [FIRST, SECOND])
def test_one_batch_is_learnt_by_heart(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, batch = T5(still(**changes)).train(), batch_of()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    assert abs(model.loss(batch)["loss"].item() - math.log(97)) < 1.5
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(batch)["loss"].backward()
        optimizer.step()
    assert model.eval().loss(batch)["loss"].item() < 0.1


@pytest.mark.parametrize("changes", [FIRST, SECOND])
def test_bfloat16_trains_near_float32(changes: dict[str, Any]) -> None:
    model, batch = T5(still(**changes)).train(), batch_of()
    reduced = reduced_copy(model, torch.bfloat16)
    losses = [m.loss(batch)["loss"] for m in (model, reduced)]
    assert losses[1].dtype == torch.float32
    assert torch.allclose(losses[0], losses[1], rtol=0.02)
    one, other = (
        torch.cat([g.float().flatten() for g in torch.autograd.grad(loss, list(m.parameters()))])
        for loss, m in zip(losses, (model, reduced), strict=True)
    )
    assert F.cosine_similarity(one, other, dim=0) > 0.99


def test_half_precision_with_padding_gives_no_nan() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        model = T5(tiny()).eval().to(dtype)
        logits = model(tokens(2, 9), mask_of(9, 9, 0), tokens(2, 4))  # a source of padding alone
        assert logits.dtype == dtype and logits.isfinite().all()


def test_signatures_name_what_is_handed_on() -> None:
    encoder, decoder = T5(tiny(num_layers=1)).graphs()
    source, past = ("batch", 4, "source", 8), ("batch", 4, "past", 8)
    assert {port.name: port.shape for port in encoder.signature.inputs} == {
        "input_ids": ("batch", "source"),
        "attention_mask": ("batch", "source"),
    }
    assert {port.name: port.shape for port in encoder.signature.outputs} == {
        "last_hidden_state": ("batch", "source", 32),
        "present.0.encoder.key": source,
        "present.0.encoder.value": source,
    }
    assert {port.name: port.shape for port in decoder.signature.inputs} == {
        "input_ids": ("batch", "sequence"),
        "encoder_attention_mask": ("batch", "source"),
        "past_key_values.0.decoder.key": past,
        "past_key_values.0.decoder.value": past,
        "past_key_values.0.encoder.key": source,
        "past_key_values.0.encoder.value": source,
    }
    assert {port.name: port.shape for port in decoder.signature.outputs} == {
        "logits": ("batch", "sequence", 97),
        "present.0.decoder.key": ("batch", 4, "past + sequence", 8),
        "present.0.decoder.value": ("batch", 4, "past + sequence", 8),
    }
    for graph, kind in ((encoder, "encoder"), (decoder, "decoder")):
        assert graph.signature.state == {
            f"present.0.{kind}.{part}": f"past_key_values.0.{kind}.{part}"
            for part in ("key", "value")
        }


@torch.no_grad()
def test_every_case_equals_one_call_of_the_reference() -> None:
    config = tiny(num_decoder_layers=1)
    reference = theirs(config)
    model = ours(reference, config)
    session = TorchSession(model)
    for case in model.cases():
        (_, first), *steps = case.calls
        outputs, state = session.run("encoder", first)
        ids, mask = (torch.from_numpy(first[n]) for n in ("input_ids", "attention_mask"))
        given = torch.from_numpy(np.concatenate([inputs["input_ids"] for _, inputs in steps], 1))
        expected = reference(input_ids=ids, attention_mask=mask, decoder_input_ids=given)
        hidden = expected.encoder_last_hidden_state.numpy()
        assert (
            np.abs(outputs["last_hidden_state"] - hidden)[first["attention_mask"] > 0].max() < 1e-4
        )
        pieces: list[np.ndarray] = []
        for name, inputs in steps:
            outputs, state = session.run(name, inputs, state)
            pieces.append(outputs["logits"])
        assert np.abs(np.concatenate(pieces, 1) - expected.logits.numpy()).max() < 1e-4, case.name


def test_cases_sweep_what_they_promise() -> None:
    config = tiny()
    cases = {case.name: case.calls for case in T5(config).cases()}
    for batch in (1, 2, 5):
        for source in (1, 2, 17, 49):
            assert f"batch={batch} source={source} target=1" in cases
            assert f"batch={batch} source={source} target=5+1+1" in cases
    assert len(cases) == 12 * 2 + 2 * 3 * 2 + 2
    assert max(sum(call[1]["input_ids"].shape[1] for call in c[1:]) for c in cases.values()) > 40
    for name, calls in cases.items():
        assert [call[0] for call in calls] == ["encoder"] + ["decoder"] * (len(calls) - 1)
        mask = calls[0][1]["attention_mask"]
        assert (mask[:, 0] == 1).all() and (mask.min() == 0) == ("padded" in name)


def test_a_model_can_be_copied_and_moved_to_meta() -> None:
    model = T5(still()).eval()
    twin = copy.deepcopy(model)
    batch = batch_of()
    assert torch.equal(model.loss(batch)["loss"], twin.loss(batch)["loss"])
    with torch.device("meta"):
        assert T5(still()).state_dict().keys() == model.state_dict().keys()
    assert not any("buckets" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 0}, "num_heads must be at least 1"),
        ({"num_decoder_layers": 0}, "num_decoder_layers must be"),
        ({"dropout_rate": 1.0}, r"dropout_rate must be in \[0, 1\)"),
        ({"label_smoothing": -0.1}, r"label_smoothing must be in \[0, 1\)"),
        ({"layer_norm_epsilon": math.nan}, "layer_norm_epsilon must be positive"),
        ({"relative_attention_num_buckets": 7}, "even and at least 4"),
        ({"relative_attention_max_distance": 16}, "must be more than 16"),
        ({"eos_token_id": 97}, "eos_token_id must be one of 97 tokens"),
    ],
)
def test_impossible_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)
