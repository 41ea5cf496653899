"""GPT exported: the sweep in ONNX Runtime, and the same text as in torch."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from cambrian import __version__
from cambrian.api import export, load
from cambrian.checkpoint import save_description, save_weights
from cambrian.data.tokenizer import Tokenizer
from cambrian_gpt import register_models
from cambrian_gpt.config import GPTConfig
from cambrian_gpt.model import GPT

[SPEC] = register_models()
PROMPTS = ["one, two, three, ", "4", "ten or eleven of them"]


@pytest.mark.parametrize("tied", [True, False])
def test_an_export_writes_the_same_text(tied: bool, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train("bpe", ["one two three ten eleven " * 9], 270)
    settings = GPTConfig(
        vocab_size=tokenizer.vocab_size,
        n_positions=40,
        n_embd=36,
        n_layer=2,
        n_head=3,
        n_inner=50,
        scale_attn_by_inverse_layer_idx=True,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model = GPT(settings).eval()
    save_description(tmp_path / "model", SPEC, settings, tokenizer, __version__)
    save_weights(tmp_path / "model", SPEC, settings, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own insides
        artifact = export(tmp_path / "model", tmp_path / "onnx")
    names = {case.name for case in model.cases()}
    assert names <= {case["name"] for case in artifact.manifest.receipt["cases"]}
    ours = load(tmp_path / "model", device="cpu")
    theirs = load(tmp_path / "onnx", device="cpu")
    assert (ours.probe()["tokens"] == theirs.probe()["tokens"]).all()
    for options in ({}, {"do_sample": True, "seed": 3, "top_p": 0.9}):
        texts = ours(PROMPTS, max_new_tokens=15, **options)
        assert texts == theirs(PROMPTS, max_new_tokens=15, **options)
        alone = [theirs([prompt], max_new_tokens=15)[0] for prompt in PROMPTS]
        assert options or alone == texts
    assert "".join(theirs.stream(PROMPTS[1], max_new_tokens=15)) == theirs.show(alone[1])
