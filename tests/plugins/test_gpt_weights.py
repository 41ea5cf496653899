"""GPT-2 checkpoints in both directions, through real files."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from cambrian.checkpoint import Checkpoint, load_tensors, save_weights
from cambrian.errors import BrokenFile
from cambrian_gpt import register_models
from cambrian_gpt.config import GPTConfig
from cambrian_gpt.model import GPT
from cambrian_gpt.weights import WEIGHTS

[SPEC] = register_models()
SHAPES: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "odd": {"n_embd": 35, "n_head": 5, "n_inner": 21, "scale_attn_by_inverse_layer_idx": True},
}
IDS = torch.arange(24).view(2, 12) % 31


def config(**changes: Any) -> GPTConfig:
    small = {"vocab_size": 31, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 4}
    return GPTConfig(**{**small, "bos_token_id": 0, "eos_token_id": 0, **changes})


def reference(settings: GPTConfig) -> transformers.GPT2LMHeadModel:
    torch.manual_seed(0)
    values = {f: getattr(settings, f) for f in settings.__dataclass_fields__}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**values)).eval()


@torch.no_grad()
def gap(one: Any, other: Any) -> float:
    first, second = (m(IDS) if isinstance(m, GPT) else m(IDS).logits for m in (one, other))
    return float((first - second).abs().max())


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("prefixed", [True, False])
def test_their_folder_opens_here(name: str, prefixed: bool, tmp_path: Path) -> None:
    theirs = reference(config(**SHAPES[name]))
    theirs.save_pretrained(tmp_path)
    if not prefixed:  # as in openai-community/gpt2, with its buffers
        file = tmp_path / "model.safetensors"
        tensors = {k.removeprefix("transformer."): v for k, v in load_file(file).items()}
        for layer in range(2):
            tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
            tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
        save_file(tensors, file)
    checkpoint = Checkpoint.open(tmp_path, [SPEC])
    assert checkpoint.config == config(**SHAPES[name])
    assert gap(checkpoint.model(), theirs) < 1e-4


@pytest.mark.parametrize("name", SHAPES)
def test_our_folder_opens_there(name: str, tmp_path: Path) -> None:
    settings = config(**SHAPES[name])
    torch.manual_seed(1)
    model = GPT(settings).eval()
    save_weights(tmp_path, SPEC, settings, model)
    values = {f: getattr(settings, f) for f in settings.__dataclass_fields__}
    description = {"architectures": [SPEC.model_class], "model_type": SPEC.model_type, **values}
    (tmp_path / "config.json").write_text(json.dumps(description))
    theirs, report = transformers.GPT2LMHeadModel.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    assert gap(model, theirs.eval()) < 1e-4
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == load_their_names(settings, tmp_path / "theirs")
    assert ("lm_head.weight" in saved) == (not settings.tie_word_embeddings)


def load_their_names(settings: GPTConfig, folder: Path) -> set[str]:
    reference(settings).save_pretrained(folder)
    return set(load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("name", SHAPES)
def test_save_and_load_are_inverse(name: str) -> None:
    settings = config(**SHAPES[name])
    state = GPT(settings).state_dict()
    saved = WEIGHTS.save(state, settings)
    assert all(tensor.is_contiguous() for tensor in saved.values())
    assert saved["transformer.h.0.mlp.c_fc.weight"].shape[0] == settings.n_embd  # [in, out]
    loaded = WEIGHTS.load(saved, settings)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def tensors(**changes: Any) -> dict[str, Tensor]:
    settings = config(**changes)
    torch.manual_seed(0)
    return WEIGHTS.save(GPT(settings).state_dict(), settings)


def test_a_missing_output_layer_is_the_embedding() -> None:
    held = tensors()
    for tied in (True, False):
        loaded = WEIGHTS.load(held, config(tie_word_embeddings=tied))
        assert torch.equal(loaded["lm_head.weight"], held["transformer.wte.weight"])


def test_an_equal_output_layer_may_be_tied() -> None:
    held = tensors()
    held["lm_head.weight"] = held["transformer.wte.weight"].clone()
    model = GPT(config())
    model.load_state_dict(WEIGHTS.load(held, config()))
    assert model.lm_head.weight is model.transformer.wte.weight


def test_an_output_layer_of_its_own_must_not_be_tied() -> None:
    held = tensors(tie_word_embeddings=False)
    loaded = WEIGHTS.load(held, config(tie_word_embeddings=False))
    assert torch.equal(loaded["lm_head.weight"], held["lm_head.weight"])
    with pytest.raises(BrokenFile, match='"tie_word_embeddings": false'):
        WEIGHTS.load(held, config())


def load(held: dict[str, Tensor]) -> None:
    load_tensors(GPT(config()), WEIGHTS.load(held, config()), Path("here"))


def test_missing_names_are_listed_up_to_three() -> None:
    held = dict(itertools.islice(tensors().items(), 3))
    with pytest.raises(BrokenFile, match=r"here lacks (\S+, ){2}\S+ and \d+ more"):
        load(held)
    held = tensors()
    del held["transformer.wte.weight"]
    with pytest.raises(BrokenFile, match=r"transformer\.wte\.weight"):
        load(held)


@pytest.mark.parametrize("name", ["score.weight", "transformer.h.2.ln_1.bias", "attn.bias.more"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(BrokenFile, match=name.replace(".", r"\.")):
        load({**tensors(), name: torch.zeros(2)})


@pytest.mark.parametrize(
    "name", ["transformer.wte.weight", "transformer.h.1.mlp.c_fc.weight", "transformer.ln_f.bias"]
)
def test_wrong_shapes_are_refused(name: str) -> None:
    for wrong in (torch.zeros(3), torch.zeros(()), torch.zeros(5, 7), torch.zeros(2, 3, 4)):
        with pytest.raises(BrokenFile, match=name.replace(".", r"\.")):
            load({**tensors(), name: wrong})


def test_a_name_held_twice_is_refused() -> None:
    held = tensors()
    held["wte.weight"] = held["transformer.wte.weight"]
    with pytest.raises(BrokenFile, match="twice"):
        WEIGHTS.load(held, config())
