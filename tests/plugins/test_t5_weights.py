"""T5 checkpoints in both directions, through real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from cambrian.checkpoint import Checkpoint, describe, read_config, save_weights
from cambrian.config import update
from cambrian.errors import BrokenFile
from cambrian_t5 import register_models
from cambrian_t5.config import T5Config
from cambrian_t5.model import T5
from cambrian_t5.weights import WEIGHTS

[SPEC] = register_models()
SECOND: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
SHAPES: dict[str, dict[str, Any]] = {
    "v1.0": {},
    "v1.1": {**SECOND, "num_heads": 3},
    "uneven": {"num_decoder_layers": 1, "num_layers": 3},
    "scaled, untied": {"tie_word_embeddings": False, "scale_decoder_outputs": True},
}
SMALL: dict[str, Any] = {
    "vocab_size": 31,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 20,
    "num_layers": 2,
    "num_heads": 2,
}
IDS = torch.arange(24).view(2, 12) % 31
MASK = (torch.arange(12) < torch.tensor([[12], [7]])).long()


def config(**changes: Any) -> T5Config:
    return T5Config(**{**SMALL, **changes})


def reference(settings: T5Config) -> transformers.T5ForConditionalGeneration:
    torch.manual_seed(0)
    values = msgspec.to_builtins(settings)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**values)).eval()
    if not settings.tie_word_embeddings:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(31, 16))
    return model


@torch.no_grad()
def gap(one: T5, other: Any) -> float:
    expected = other(input_ids=IDS, attention_mask=MASK, decoder_input_ids=IDS[:, :7]).logits
    return float((one(IDS, MASK, IDS[:, :7]) - expected).abs().max())


@pytest.mark.parametrize("name", SHAPES)
def test_their_folder_opens_here(name: str, tmp_path: Path) -> None:
    settings = config(**SHAPES[name])
    theirs = reference(settings)
    theirs.save_pretrained(tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    assert description["tie_word_embeddings"]  # what version 5 always writes
    if name == "scaled, untied":  # its file says of this one only what it is not
        description["tie_word_embeddings"] = False
        (tmp_path / "config.json").write_text(json.dumps(description))
    checkpoint = Checkpoint.open(tmp_path, [SPEC])
    assert checkpoint.config.output_scale == settings.output_scale
    assert checkpoint.config.tie_word_embeddings == settings.tie_word_embeddings
    assert gap(checkpoint.model(), theirs) < 1e-4


@pytest.mark.parametrize("name", ["v1.0", "v1.1"])
def test_a_folder_of_version_4_opens_here(name: str, tmp_path: Path) -> None:
    """It has no scale_decoder_outputs, may lack tie_word_embeddings, and repeats embeddings."""
    theirs = reference(config(**SHAPES[name]))
    theirs.save_pretrained(tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    del description["scale_decoder_outputs"], description["tie_word_embeddings"]
    if name == "v1.1":
        description["tie_word_embeddings"] = False
    (tmp_path / "config.json").write_text(json.dumps(description))
    held = load_file(tmp_path / "model.safetensors")
    for stack in ("encoder", "decoder"):
        held[f"{stack}.embed_tokens.weight"] = held["shared.weight"].clone()
    held["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.ones(32)
    save_file(held, tmp_path / "model.safetensors")
    assert gap(Checkpoint.open(tmp_path, [SPEC]).model(), theirs) < 1e-4


@pytest.mark.parametrize("name", SHAPES)
def test_our_folder_opens_there(name: str, tmp_path: Path) -> None:
    settings = config(**SHAPES[name])
    torch.manual_seed(1)
    model = T5(settings).eval()
    save_weights(tmp_path, SPEC, settings, model)
    (tmp_path / "config.json").write_text(json.dumps(describe(SPEC, settings, "0")))
    theirs, report = transformers.T5ForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    assert gap(model, theirs.eval()) < 1e-4
    saved = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in saved) == (not settings.tie_word_embeddings)
    theirs.save_pretrained(tmp_path / "again")
    assert saved.keys() == load_file(tmp_path / "again" / "model.safetensors").keys()
    again = Checkpoint.open(tmp_path, [SPEC])
    assert again.config == settings and gap(again.model(), theirs) < 1e-4


@pytest.mark.parametrize(
    ("changes", "version4", "version5"),
    [
        ({}, True, True),
        ({"tie_word_embeddings": False}, False, False),
        ({"scale_decoder_outputs": False}, False, False),
        ({"scale_decoder_outputs": True}, True, True),
        ({"scale_decoder_outputs": None}, True, True),
        ({"tie_word_embeddings": False, "scale_decoder_outputs": None}, False, False),
    ],
)
def test_every_version_reads_the_scale_from_our_config(
    changes: dict[str, Any], version4: bool, version5: bool
) -> None:
    settings = update(config(), changes, "a test")
    written = json.loads(json.dumps(describe(SPEC, settings, "0")))
    assert written["tie_word_embeddings"] == version4  # all that version 4 looks at
    assert transformers.T5Config(**written).scale_decoder_outputs == version5
    assert (settings.output_scale != 1) == version5
    assert read_config(written, SPEC, Path("config.json")) == settings


@pytest.mark.parametrize("name", SHAPES)
def test_save_and_load_are_inverse(name: str) -> None:
    settings = config(**SHAPES[name])
    state = T5(settings).state_dict()
    loaded = WEIGHTS.load(WEIGHTS.save(state, settings), settings)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def tensors(**changes: Any) -> dict[str, Tensor]:
    settings = config(**changes)
    torch.manual_seed(0)
    return WEIGHTS.save(T5(settings).state_dict(), settings)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_the_embedding_may_have_a_stacks_name(stack: str) -> None:
    held = tensors()
    embedding = held.pop("shared.weight")
    loaded = WEIGHTS.load({**held, f"{stack}.embed_tokens.weight": embedding}, config())
    assert torch.equal(loaded["shared.weight"], embedding)
    assert torch.equal(loaded["lm_head.weight"], embedding)
    assert loaded.keys() == T5(config()).state_dict().keys()


def test_embeddings_that_differ_are_refused() -> None:
    held = tensors()
    held["encoder.embed_tokens.weight"] = held["shared.weight"] + 1
    with pytest.raises(BrokenFile, match=r"'encoder\.embed_tokens\.weight' that differs"):
        WEIGHTS.load(held, config())
    del held["shared.weight"]
    held["decoder.embed_tokens.weight"] = held["encoder.embed_tokens.weight"] + 1
    with pytest.raises(BrokenFile, match="differs from"):
        WEIGHTS.load(held, config())


def test_a_missing_output_layer_is_the_embedding() -> None:
    held = tensors()
    for tied in (True, False):
        loaded = WEIGHTS.load(held, config(tie_word_embeddings=tied))
        assert torch.equal(loaded["lm_head.weight"], held["shared.weight"])


def test_an_output_layer_of_its_own_must_not_be_tied() -> None:
    held = tensors(tie_word_embeddings=False)
    loaded = WEIGHTS.load(held, config(tie_word_embeddings=False))
    assert torch.equal(loaded["lm_head.weight"], held["lm_head.weight"])
    with pytest.raises(BrokenFile, match='"tie_word_embeddings": false'):
        WEIGHTS.load(held, config())


def test_what_fits_nothing_is_left_for_core_to_name() -> None:
    held = {**tensors(), "extra.weight": torch.zeros(2)}
    del held["encoder.final_layer_norm.weight"]
    loaded = WEIGHTS.load(held, config())
    assert "extra.weight" in loaded and "encoder.final_layer_norm.weight" not in loaded
