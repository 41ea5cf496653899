"""BERT and RoBERTa against transformers' models, and against what their mathematics promises."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from cambrian.errors import UsageError
from cambrian.runtime.torch import TorchSession
from cambrian_bert import register_models
from cambrian_bert.config import BertConfig, RobertaConfig

SPECS = {spec.name: spec for spec in register_models()}
TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,  # large, so that a wrong detail shows in the logits
    "id2label": {"0": "low", "1": "middle", "2": "high"},
}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd heads": {"hidden_size": 35, "num_attention_heads": 5},
    "one head": {"num_attention_heads": 1, "num_hidden_layers": 1},
    "gelu_new": {"hidden_act": "gelu_new"},
    "relu": {"hidden_act": "relu"},
    "epsilon": {"layer_norm_eps": 1e-2},
    "untied": {"tie_word_embeddings": False},
    "padding token": {"pad_token_id": 3},
    "segments": {"type_vocab_size": 3},
}


def tiny(name: str, **changes: Any) -> Any:
    return SPECS[name].config(**{**TINY, **changes})


def theirs(name: str, config: BertConfig) -> Any:
    """A random reference model, its biases and norms moved off their trivial start."""
    torch.manual_seed(0)
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    kind = transformers.RobertaConfig if name.startswith("rob") else transformers.BertConfig
    assert SPECS[name].model_class is not None
    reference = getattr(transformers, SPECS[name].model_class)(kind(**values)).eval()
    with torch.no_grad():
        for parameter_name, parameter in reference.named_parameters():
            if parameter_name.endswith("bias") or "norm" in parameter_name.lower():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return reference


def ours(name: str, reference: Any, config: BertConfig) -> Any:
    model = SPECS[name].model.load()(config)
    model.load_state_dict(SPECS[name].weights.load().load(reference.state_dict(), config))
    return model.eval()


def built(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    return SPECS[name].model.load()(tiny(name, **changes))


def texts(length: int, pad: int = 0) -> tuple[Tensor, Tensor]:
    """Three rows of ids and their mask, of `length`, a bit more than half of it, and 1 token."""
    ids = torch.from_numpy(np.random.default_rng(0).integers(4, 97, size=(3, length)))
    widths = torch.tensor([length, (length + 2) // 2, 1])
    mask = (torch.arange(length) < widths[:, None]).long()
    return ids.where(mask.bool(), pad), mask


def reference_output(name: str, reference: Any, **inputs: Tensor) -> Tensor:
    found = reference(**inputs)
    if not name.endswith("embedder"):
        return found.logits
    mask = inputs["attention_mask"][..., None].float()
    mean = (found.last_hidden_state * mask).sum(1) / mask.sum(1)
    return mean / mean.norm(dim=-1, keepdim=True)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 38])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SPECS)
def test_outputs_equal_the_reference(name: str, shape: str, length: int) -> None:
    config = tiny(name, **SHAPES[shape])
    reference = theirs(name, config)
    model = ours(name, reference, config)
    ids, mask = texts(min(length, config.max_length), config.pad_token_id)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if config.type_vocab_size > 1:
        inputs["token_type_ids"] = ids % config.type_vocab_size
    gap = model(**inputs) - reference_output(name, reference, **inputs)
    if gap.dim() == 3:
        gap = gap[mask.bool()]
    assert gap.abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("name", SPECS)
def test_padding_changes_nothing_and_gives_no_nan(name: str) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)):
        model = built(name, initializer_range=0.05).eval().to(dtype)
        ids, mask = texts(38, model.config.pad_token_id)
        whole = model(ids, mask)
        assert whole.isfinite().all()
        for row, width in enumerate(mask.sum(-1).tolist()):
            alone = model(ids[row : row + 1, :width])[0]
            kept = whole[row, :width] if whole.dim() == 3 else whole[row]
            assert (alone - kept).abs().max() < tolerance
    junk = ids.where(mask.bool(), 50)
    for row, width in enumerate(mask.sum(-1).tolist()):  # what padding consists of is never read
        kept = slice(width) if whole.dim() == 3 else slice(None)
        assert torch.equal(model(junk, mask)[row, kept], whole[row, kept])


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_a_mask_of_ones_is_exactly_none(name: str, training: bool) -> None:
    model = built(name, **STILL).train(training)
    ids, _ = texts(20)
    assert torch.equal(model(ids), model(ids, torch.ones_like(ids)))


def test_roberta_counts_positions_from_the_padding_token() -> None:
    """The first 2 positions are never a token's, and a row of 38 uses the last one."""
    model = built("roberta", **STILL).train()
    ids, mask = texts(38, pad=1)
    model(ids, mask)[mask.bool()].sum().backward()
    moved = model.encoder.embeddings.position_embeddings.weight.grad.abs().sum(-1) > 0
    assert moved.tolist() == [False, False] + [True] * 38


def test_training_computes_what_evaluation_computes() -> None:
    """Plain attention and the fused kernel: the same hidden states."""
    model = built("bert", **STILL).train()
    ids, mask = texts(40)
    trained = model(ids, mask)
    assert torch.allclose(trained, model.eval()(ids, mask), atol=1e-5)


def test_dropout_follows_the_config_and_the_mode() -> None:
    ids, mask = texts(10)
    rates = {**STILL, "classifier_dropout": 0.0}
    for name in ("bert-classifier", "roberta-classifier", "bert-tagger"):
        still = built(name, **rates).train()
        assert torch.equal(still(ids, mask), still(ids, mask))
        for rate in rates:
            model = built(name, **{**rates, rate: 0.5}).train()
            assert not torch.equal(model(ids, mask), model(ids, mask)), rate
            assert torch.equal(model.eval()(ids, mask), model(ids, mask)), rate


def masked_batch(pad: int = 0) -> dict[str, Tensor]:
    ids, mask = texts(30, pad)
    chosen = torch.zeros_like(mask, dtype=torch.bool)
    chosen[0, 3::4] = chosen[1, 1] = True
    labels = torch.full_like(ids, -100).masked_scatter(chosen, (ids + 7) % 97)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_the_head_at_masked_positions_is_enough(name: str) -> None:
    """Loss and gradients are those of the head at all positions, and the reference's."""
    config = tiny(name, **STILL)
    reference = theirs(name, config).train()
    model = ours(name, reference, config).train()
    batch = masked_batch(config.pad_token_id)
    logits = model(batch["input_ids"], batch["attention_mask"])
    full = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100)
    expected = torch.autograd.grad(full, list(model.parameters()))
    found = model.loss(batch)
    gradients = torch.autograd.grad(found["loss"], list(model.parameters()))
    assert found.keys() == {"loss"}
    assert torch.allclose(found["loss"], full, atol=1e-6)
    assert torch.allclose(found["loss"], reference(**batch).loss, atol=1e-5)
    for one, other in zip(gradients, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_the_vocabulary_head_reads_masked_positions_only() -> None:
    model = built("bert").train()
    seen: list[tuple[int, ...]] = []
    decoder = model.cls["predictions"].decoder
    decoder.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape)))
    model.loss(masked_batch())
    model.evaluate(masked_batch())
    assert seen == [(8, 32)] * 2


@pytest.mark.parametrize("name", ["bert", "bert-tagger", "roberta", "roberta-tagger"])
def test_a_batch_with_nothing_to_predict_is_no_nan(name: str) -> None:
    model = built(name).train()
    batch = {**masked_batch(), "labels": torch.full((3, 30), -100)}
    loss = model.loss(batch)["loss"]
    loss.backward()
    assert loss.item() == 0
    found = model.evaluate(batch)
    assert found["count"] == 0 and found["loss"] == 0


def labelled(name: str) -> dict[str, Tensor]:
    """A batch for any of the models; the pairs are the texts, shortened."""
    pad = SPECS[name].config().pad_token_id
    batch = masked_batch(pad)
    if name.endswith("tagger"):
        batch["labels"] = torch.where(batch["labels"] == -100, -100, batch["labels"] % 3)
    elif name.endswith("classifier"):
        batch["labels"] = torch.tensor([2, 0, 1])
    elif name.endswith("embedder"):
        batch["pair_input_ids"] = batch["input_ids"][:, :9]
        batch["pair_attention_mask"] = batch["attention_mask"][:, :9]
    return batch


@pytest.mark.parametrize("name", [name for name in SPECS if "embedder" not in name])
def test_metrics_equal_the_reference(name: str) -> None:
    config = tiny(name)
    reference = theirs(name, config)
    model, batch = ours(name, reference, config), labelled(name)
    with torch.no_grad():
        expected, found = reference(**batch), model.evaluate(batch)
    chosen = batch["labels"] != -100
    right = (expected.logits.argmax(-1) == batch["labels"])[chosen].float().mean()
    assert torch.allclose(found["loss"], expected.loss, atol=1e-5)
    assert found["accuracy"] == right and found["count"] == chosen.sum()
    perplexity = {"perplexity": math.exp(3.0)} if name in ("bert", "roberta") else {}
    assert model.derive({"loss": 3.0}) == perplexity


@pytest.mark.parametrize("name", ["bert-embedder", "roberta-embedder"])
def test_the_embedder_picks_partners_by_cosine(name: str) -> None:
    model, batch = built(name, **STILL).eval(), labelled(name)
    with torch.no_grad():
        one = model(batch["input_ids"], batch["attention_mask"])
        other = model(batch["pair_input_ids"], batch["pair_attention_mask"])
    cosines = F.cosine_similarity(one[:, None], other[None], dim=-1)
    logs = [(20 * table).log_softmax(-1).diagonal().mean() for table in (cosines, cosines.T)]
    hits = [(t.argmax(-1) == torch.arange(3)).float().mean() for t in (cosines, cosines.T)]
    found = model.evaluate(batch)
    assert torch.allclose(model.loss(batch)["loss"], -sum(logs) / 2, atol=1e-5)
    assert torch.allclose(found["loss"], -sum(logs) / 2, atol=1e-5)
    assert torch.allclose(found["accuracy"], sum(hits) / 2)
    assert torch.allclose(one.norm(dim=-1), torch.ones(3))


@pytest.mark.parametrize("name", SPECS)
def test_one_batch_is_learnt_by_heart(name: str) -> None:
    model = built(name, **STILL, initializer_range=0.05).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = labelled(name)
    [update] = model.updates()
    first = update.loss(batch)["loss"].item()
    for _ in range(80):
        optimizer.zero_grad()
        update.loss(batch)["loss"].backward()
        optimizer.step()
    assert update.loss(batch)["loss"].item() < 0.1 * first
    assert model.eval().evaluate(batch)["accuracy"] == 1


@pytest.mark.parametrize("name", SPECS)
def test_bfloat16_weights_train(name: str) -> None:
    model = built(name, initializer_range=0.05).train()
    expected = model.eval().loss(labelled(name))["loss"].item()
    half = model.bfloat16()
    found = half.loss(labelled(name))["loss"]
    assert found.dtype == torch.float32 and abs(found.item() - expected) < 0.1
    half.train().loss(labelled(name))["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in half.parameters())


def test_default_configs_are_the_base_models() -> None:
    reference = transformers.BertConfig()
    for name in {f.name for f in dataclasses.fields(BertConfig)} - {"id2label", "label2id"}:
        assert getattr(BertConfig(), name) == getattr(reference, name), name
    assert BertConfig().labels == tuple(reference.id2label.values())
    # roberta-base's config.json, where it differs from the defaults of the class
    published = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    reference = transformers.RobertaConfig(**published)
    for name in {f.name for f in dataclasses.fields(RobertaConfig)} - {"id2label", "label2id"}:
        assert getattr(RobertaConfig(), name) == getattr(reference, name), name
    assert RobertaConfig().max_length == BertConfig().max_length == 512
    with torch.device("meta"):  # the sizes of the published checkpoints' models
        counts = {
            name: sum(p.numel() for p in spec.model.load()(spec.config()).parameters())
            for name, spec in SPECS.items()
        }
    assert counts["bert"] == 109_514_298 and counts["bert-embedder"] == 108_891_648
    assert counts["roberta"] == 124_697_433


@pytest.mark.parametrize("name", SPECS)
def test_parameters_have_the_references_names_and_scale(name: str) -> None:
    torch.manual_seed(0)
    config = tiny(name, vocab_size=512, hidden_size=128, intermediate_size=512)
    model = SPECS[name].model.load()(config)
    names = {n for n in theirs(name, config).state_dict() if "pooler" not in n or "class" in name}
    cut = f"{model.base}." if name.endswith("embedder") else ""
    assert {n.removeprefix(cut) for n in model.state_dict()} == names
    for parameter_name, tensor in model.named_parameters():
        if parameter_name.endswith("bias"):
            assert not tensor.any(), parameter_name
        elif "norm" in parameter_name.lower():
            assert (tensor == 1).all(), parameter_name
        elif tensor.numel() > 2000:
            assert abs(float(tensor.detach().std()) / 0.2 - 1) < 0.05, parameter_name


def test_tied_embeddings_and_biases_are_one_parameter() -> None:
    model = built("roberta")
    for head in (built("bert").cls["predictions"], model.lm_head):
        assert head.bias is head.decoder.bias
    assert model.lm_head.decoder.weight is model.encoder.embeddings.word_embeddings.weight
    untied = built("roberta", tie_word_embeddings=False)
    assert len(list(untied.parameters())) == len(list(model.parameters())) + 1


@pytest.mark.parametrize("name", SPECS)
def test_signature_says_what_the_graph_gives(name: str) -> None:
    model = built(name).eval()
    [graph] = model.graphs()
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * name.startswith("bert")
    assert [port.name for port in graph.signature.inputs] == names
    assert all((p.dtype, len(p.shape)) == ("int64", 2) for p in graph.signature.inputs)
    [port] = graph.signature.outputs
    width = {"classifier": 3, "tagger": 3, "embedder": 32}.get(name.partition("-")[2], 97)
    axes = ("batch",) if name.endswith(("classifier", "embedder")) else ("batch", "sequence")
    output = "sentence_embedding" if name.endswith("embedder") else "logits"
    assert (port.name, port.dtype, port.shape) == (output, "float32", (*axes, width))
    assert graph.name == "model" and not graph.signature.state
    assert built(name).half().graphs()[0].signature.outputs[0].dtype == "float16"
    session, sizes = TorchSession(model), set()
    for case in model.cases():
        [(called, inputs)] = case.calls
        found, _ = session.run(called, inputs)
        batch, length = inputs["input_ids"].shape
        sizes.add((batch, length, bool((inputs["attention_mask"] == 0).any())))
        assert found[output].shape == (*(batch, length)[: len(axes)], width), case.name
        assert np.isfinite(found[output]).all()
        assert (inputs["attention_mask"][:, 0] == 1).all() and inputs["attention_mask"][0].all()
    most = model.config.max_length
    assert {(b, n, False) for b in (1, 2, 5) for n in (1, 2, 17, most)} <= sizes
    assert {(b, n, True) for b in (2, 5) for n in (2, 17, most)} <= sizes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 33}, "multiple of num_attention_heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob must be in \[0, 1\)"),
        ({"classifier_dropout": -0.1}, r"classifier_dropout must be in \[0, 1\)"),
        ({"layer_norm_eps": math.nan}, "layer_norm_eps must be positive"),
        ({"pad_token_id": 97}, "pad_token_id must be one of the 97 tokens"),
        ({"id2label": {}}, "id2label must name the classes"),
        ({"problem_type": "multi_label_classification"}, "only single_label_classification"),
        ({"id2label": {"1": "a", "2": "b"}}, "classes 0 to n - 1, not 1, 2"),
    ],
)
def test_impossible_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny("bert", **changes)
    with pytest.raises(ValueError, match="leaves no position"):
        tiny("roberta", max_position_embeddings=2)
    assert tiny("bert").labels == ("low", "middle", "high")
    assert tiny("bert").label2id == {"low": 0, "middle": 1, "high": 2}


def test_a_classifier_of_one_class_is_refused() -> None:
    with pytest.raises(UsageError, match="two classes or more"):
        SPECS["bert-classifier"].model.load()(BertConfig(id2label={"0": "relevance"}))
