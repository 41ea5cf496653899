"""BERT's and RoBERTa's checkpoints in both directions, through real files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from cambrian.checkpoint import Checkpoint, describe, save_weights
from cambrian.errors import BrokenFile
from cambrian.specs import ModelSpec
from cambrian_bert import register_models
from cambrian_bert.config import BertConfig

SPECS = {spec.name: spec for spec in register_models()}
SHAPES: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "odd": {"hidden_size": 35, "num_attention_heads": 5, "layer_norm_eps": 1e-3},
}
IDS = 4 + torch.arange(24).view(2, 12) % 27


def config(name: str, **changes: Any) -> Any:
    small = {
        "vocab_size": 31,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "max_position_embeddings": 16,
        "initializer_range": 0.2,
        "id2label": {"0": "no", "1": "yes", "2": "perhaps"},
    }
    return SPECS[name].config(**{**small, **changes})


def reference(name: str, settings: BertConfig, kind: str = "") -> Any:
    """A random model of transformers' class for this name, or of another of the same encoder."""
    torch.manual_seed(0)
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    family = "Roberta" if name.startswith("rob") else "Bert"
    theirs = getattr(transformers, f"{family}Config")(**values)
    model = getattr(transformers, kind or str(SPECS[name].model_class))(theirs).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model


def ours(spec: ModelSpec, settings: Any, seed: int = 1) -> Any:
    torch.manual_seed(seed)
    model = spec.model.load()(settings).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model


@torch.no_grad()
def gap(one: Any, other: Any) -> float:
    """The largest difference between what our model and theirs give."""
    found = other(IDS)
    if hasattr(found, "logits"):
        return float((one(IDS) - found.logits).abs().max())
    mean = found.last_hidden_state.mean(1)
    return float((one(IDS) - mean / mean.norm(dim=-1, keepdim=True)).abs().max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SPECS)
def test_their_folder_opens_here(name: str, shape: str, tmp_path: Path) -> None:
    theirs = reference(name, config(name, **SHAPES[shape]))
    theirs.save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path, SPECS.values())
    assert checkpoint.spec is SPECS[name]
    assert checkpoint.config == config(name, **SHAPES[shape])
    assert gap(checkpoint.model(), theirs) < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SPECS)
def test_our_folder_opens_there(name: str, shape: str, tmp_path: Path) -> None:
    spec, settings = SPECS[name], config(name, **SHAPES[shape])
    model = ours(spec, settings)
    save_weights(tmp_path, spec, settings, model)
    (tmp_path / "config.json").write_text(json.dumps(describe(spec, settings, "0")))
    # The reference's bare encoder may have a pooler, which a mean over the tokens has no use for.
    options = {"add_pooling_layer": False} if name.endswith("embedder") else {}
    kind = getattr(transformers, str(spec.model_class))
    theirs, report = kind.from_pretrained(tmp_path, output_loading_info=True, **options)
    assert not any(report.values()), report
    assert gap(model, theirs.eval()) < 1e-4
    assert theirs.config.id2label == {0: "no", 1: "yes", 2: "perhaps"}
    assert theirs.config.label2id == {"no": 0, "yes": 1, "perhaps": 2}
    theirs.save_pretrained(tmp_path / "theirs")
    saved, expected = (
        load_file(folder / "model.safetensors") for folder in (tmp_path, tmp_path / "theirs")
    )
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[key], expected[key]) for key in saved)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SPECS)
def test_save_and_load_are_inverse(name: str, shape: str) -> None:
    settings, weights = config(name, **SHAPES[shape]), SPECS[name].weights
    assert weights is not None
    state = ours(SPECS[name], settings).state_dict()
    saved = weights.load().save(state, settings)
    pointers = [tensor.data_ptr() for tensor in saved.values()]
    assert len(pointers) == len(set(pointers))  # each shared tensor once
    loaded = weights.load().load(saved, settings)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def published(name: str, settings: BertConfig, folder: Path) -> Any:
    """A folder with the tensors of bert-base-uncased or roberta-base: encoder and language-model
    head, and what else is in those files."""
    family = "Roberta" if name.startswith("rob") else "Bert"
    full = "RobertaForMaskedLM" if family == "Roberta" else "BertForPreTraining"
    theirs = reference(name, settings, full)
    theirs.save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    if family == "Bert":  # old names of norms, a pooler and BERT's second task
        tensors = {
            k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): v
            for k, v in tensors.items()
        }
        assert "cls.seq_relationship.weight" in tensors and "bert.pooler.dense.bias" in tensors
        assert "cls.predictions.transform.LayerNorm.gamma" in tensors
        assert "cls.predictions.decoder.weight" not in tensors
    else:
        tensors["roberta.embeddings.position_ids"] = torch.arange(16)[None]
        tensors["lm_head.decoder.weight"] = tensors["roberta.embeddings.word_embeddings.weight"] + 0
        tensors["lm_head.decoder.bias"] = tensors["lm_head.bias"].clone()
    save_file(tensors, file)
    return theirs


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_published_layouts_open(name: str, tmp_path: Path) -> None:
    theirs = published(name, config(name), tmp_path)
    model = Checkpoint.open(tmp_path, SPECS.values()).model()
    expected = theirs(IDS)
    logits = expected.logits if name == "roberta" else expected.prediction_logits
    assert (model(IDS) - logits).abs().max() < 1e-4


def test_a_config_of_bert_alone_is_the_masked_model(tmp_path: Path) -> None:
    """bert-base-uncased's own config.json, but for its sizes, and with no class named."""
    published("bert", config("bert"), tmp_path)
    found = json.loads((tmp_path / "config.json").read_text())
    del found["architectures"], found["id2label"], found["label2id"]
    found |= {"gradient_checkpointing": False, "position_embedding_type": "absolute"}
    (tmp_path / "config.json").write_text(json.dumps(found))
    checkpoint = Checkpoint.open(tmp_path, SPECS.values())
    assert checkpoint.spec.name == "bert"
    assert checkpoint.config == config("bert", id2label={"0": "LABEL_0", "1": "LABEL_1"})


@pytest.mark.parametrize("prefixed", [True, False])
@pytest.mark.parametrize("name", SPECS)
def test_the_encoder_of_a_published_layout_serves_every_head(
    name: str, prefixed: bool, tmp_path: Path
) -> None:
    """What belongs to other heads is left aside, whatever the encoder's prefix; what the head
    itself lacks is not made up."""
    published(name, config(name), tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    base = name.partition("-")[0] + "."
    if not prefixed:
        held = {key.removeprefix(base): value for key, value in held.items()}
    weights, model = SPECS[name].weights, ours(SPECS[name], config(name))
    assert weights is not None
    loaded = weights.load().load(held, config(name))
    missing = model.state_dict().keys() - loaded.keys()
    assert loaded.keys() <= model.state_dict().keys()
    assert all(key.startswith("classifier.") for key in missing)
    assert bool(missing) == ("classifier" in name or "tagger" in name)
    pooler = "bert.pooler.dense.weight"
    assert (pooler in loaded) == (name == "bert-classifier")
    norm = f"{base}encoder.layer.1.output.LayerNorm.weight"
    bare = norm if prefixed else norm.removeprefix(base)
    source = held.get(bare, held.get(bare.replace("LayerNorm.weight", "LayerNorm.gamma")))
    assert source is not None and torch.equal(loaded[norm], source)


@pytest.mark.parametrize("name", ["bert-embedder", "roberta-embedder"])
def test_an_encoder_with_or_without_pooler_opens(name: str, tmp_path: Path) -> None:
    settings = config(name)
    theirs = reference(name, settings)
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    held = load_file(file)
    assert "pooler.dense.weight" in held
    held["embeddings.position_ids"] = torch.arange(16)[None]
    for cut in (False, True):
        kept = {k: v for k, v in held.items() if not (cut and k.startswith("pooler."))}
        save_file(kept, file)
        assert gap(Checkpoint.open(tmp_path, SPECS.values()).model(), theirs) < 1e-4


def tensors(name: str, **changes: Any) -> dict[str, Tensor]:
    settings, weights = config(name, **changes), SPECS[name].weights
    assert weights is not None
    return weights.load().save(ours(SPECS[name], settings).state_dict(), settings)


def load(name: str, held: dict[str, Tensor], **changes: Any) -> dict[str, Tensor]:
    weights = SPECS[name].weights
    assert weights is not None
    return weights.load().load(held, config(name, **changes))


def test_two_spellings_of_one_parameter_are_refused() -> None:
    held = tensors("bert")
    held["bert.embeddings.LayerNorm.gamma"] = held["bert.embeddings.LayerNorm.weight"]
    with pytest.raises(BrokenFile, match=r"LayerNorm\.weight' twice"):
        load("bert", held)
    held = tensors("roberta")
    held["embeddings.word_embeddings.weight"] = held["roberta.embeddings.word_embeddings.weight"]
    with pytest.raises(BrokenFile, match="twice"):
        load("roberta", held)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_an_output_layer_of_its_own_must_not_be_tied(name: str) -> None:
    held = tensors(name, tie_word_embeddings=False)
    head = "cls.predictions." if name == "bert" else "lm_head."
    loaded = load(name, held, tie_word_embeddings=False)
    assert torch.equal(loaded[f"{head}decoder.weight"], held[f"{head}decoder.weight"])
    with pytest.raises(BrokenFile, match='"tie_word_embeddings": false'):
        load(name, held)
    held[f"{head}bias"] = held[f"{head}bias"] + 1  # unused there, and so it is here
    loaded = load(name, held, tie_word_embeddings=False)
    assert torch.equal(loaded[f"{head}bias"], held[f"{head}decoder.bias"])
    tied = tensors(name)
    with pytest.raises(BrokenFile, match=r"decoder\.bias' that differs"):
        load(name, {**tied, f"{head}decoder.bias": torch.zeros(31)})


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_missing_output_layer_is_the_embedding(name: str) -> None:
    head = "cls.predictions." if name == "bert" else "lm_head."
    embedding = f"{name}.embeddings.word_embeddings.weight"
    for tied in (True, False):
        loaded = load(name, tensors(name), tie_word_embeddings=tied)
        assert torch.equal(loaded[f"{head}decoder.weight"], loaded[embedding])
        assert torch.equal(loaded[f"{head}decoder.bias"], loaded[f"{head}bias"])


def test_unknown_names_and_lookalikes_of_buffers_are_kept_for_core_to_refuse(
    tmp_path: Path,
) -> None:
    spec, settings = SPECS["bert"], config("bert")
    save_weights(tmp_path, spec, settings, ours(spec, settings))
    (tmp_path / "config.json").write_text(json.dumps(describe(spec, settings, "0")))
    file = tmp_path / "model.safetensors"
    held = load_file(file)
    for name in ("bert.xembeddings.position_ids", "bert.encoder.layer.2.output.dense.bias", "w"):
        save_file({**held, name: torch.zeros(2)}, file)
        with pytest.raises(BrokenFile, match=name):
            Checkpoint.open(tmp_path, SPECS.values()).model()
    del held["bert.encoder.layer.1.output.dense.bias"]
    save_file(held, file)
    with pytest.raises(BrokenFile, match=r"lacks '?bert\.encoder\.layer\.1\.output\.dense\.bias"):
        Checkpoint.open(tmp_path, SPECS.values()).model()
