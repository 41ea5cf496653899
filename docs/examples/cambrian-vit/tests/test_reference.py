"""ViT held to transformers', in both directions and through real files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from cambrian_vit import register_models
from cambrian_vit.config import ViTConfig
from PIL import Image
from safetensors.torch import load_file
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from cambrian.checkpoint import Checkpoint, describe, keep_fitting, save_weights
from cambrian.data.images import ImageProcessor
from cambrian.errors import BrokenFile

[SPEC] = register_models()
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "grey": {"num_channels": 1, "image_size": 12, "patch_size": 3},
    "odd": {"qkv_bias": False, "layer_norm_eps": 1e-3, "hidden_size": 35, "num_attention_heads": 5},
}


def config(**changes: Any) -> ViTConfig:
    small = {
        "image_size": 16,
        "patch_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "initializer_range": 0.2,
        "id2label": {"0": "cat", "1": "dog", "2": "newt"},
    }
    return ViTConfig(**{**small, **changes})


def reference(settings: ViTConfig, kind: str = "ViTForImageClassification") -> Any:
    """A random model of transformers' class."""
    torch.manual_seed(0)
    theirs = transformers.ViTConfig(**dataclasses.asdict(settings))
    return shaken(getattr(transformers, kind)(theirs))


def ours(settings: ViTConfig) -> Any:
    torch.manual_seed(1)
    return shaken(SPEC.model.load()(settings))


@torch.no_grad()
def shaken(model: Any) -> Any:
    """The model with biases and norms that are not 0 and 1."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@torch.no_grad()
def gap(one: Any, other: Any) -> float:
    """The largest difference between the logits of our model and theirs."""
    settings = one.config
    shape = (3, settings.num_channels, settings.image_size, settings.image_size)
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    return float((one(pixels)[0] - other(pixels).logits).abs().max())


@pytest.mark.parametrize("shape", SHAPES)
def test_their_folder_opens_here(shape: str, tmp_path: Path) -> None:
    theirs = reference(config(**SHAPES[shape]))
    theirs.save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path, [SPEC])
    assert checkpoint.config == config(**SHAPES[shape])
    assert gap(checkpoint.model(), theirs) < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_our_folder_opens_there(shape: str, tmp_path: Path) -> None:
    settings = config(**SHAPES[shape])
    model = ours(settings)
    save_weights(tmp_path, SPEC, settings, model)
    (tmp_path / "config.json").write_text(json.dumps(describe(SPEC, settings, "0")))
    theirs, report = transformers.ViTForImageClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    assert gap(model, theirs.eval()) < 1e-5
    assert theirs.config.id2label == {0: "cat", 1: "dog", 2: "newt"}
    theirs.save_pretrained(tmp_path / "theirs")
    saved, expected = (
        load_file(folder / "model.safetensors") for folder in (tmp_path, tmp_path / "theirs")
    )
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[key], expected[key]) for key in saved)


@pytest.mark.parametrize("kind", ["ViTModel", "ViTForMaskedImageModeling"])
def test_fine_tuning_begins_with_any_encoder(kind: str, tmp_path: Path) -> None:
    """All of it is kept but another head, and nothing but the classifier is fresh."""
    reference(config(), kind).save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path, [SPEC])
    kept = keep_fitting(ours(config()), checkpoint.tensors(SPEC, config()), tmp_path)
    assert kept.fresh == ("classifier.weight", "classifier.bias") and not kept.left
    with pytest.raises(BrokenFile, match="classifier"):
        checkpoint.model()


def test_a_picture_is_prepared_as_there(tmp_path: Path) -> None:
    theirs = ViTImageProcessorPil(
        size={"height": 16, "width": 16}, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]
    )
    theirs.save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    image = Image.fromarray(pixels)
    processor = ImageProcessor.load(tmp_path)
    seen = processor.normalize(processor.fit(image))
    want = theirs(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(seen, want, rtol=0, atol=1e-5)
