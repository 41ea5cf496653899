"""float16 artifacts of pictures' models, figures in training, and pictures of another size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from cambrian import api
from cambrian.errors import BrokenFile
from cambrian.image_pipeline import compared
from cambrian.registry import load_registry
from cambrian.testing import train_example


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier."""
    folder = tmp_path_factory.mktemp("judge") / "cnn"
    train_example(load_registry().models["cnn"], folder)
    return folder


@pytest.mark.parametrize("name", ["cnn", "vae", "autoencoder-kl", "dcgan"])
def test_a_float16_artifact_takes_and_gives_pictures(name: str, tmp_path: Path) -> None:
    train_example(load_registry().models[name], tmp_path / "model")
    api.export(tmp_path / "model", tmp_path / "half", precision="float16")
    file = tmp_path / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12), np.uint8)).save(file)
    inputs = [] if name == "dcgan" else [str(file)]
    [whole], [half] = (
        api.run(tmp_path / folder, inputs, **({} if inputs else {"count": 1}))
        for folder in ("model", "half")
    )
    if name == "cnn":
        assert half["score"] == pytest.approx(whole["score"], abs=5e-3)
    else:
        difference = np.abs(half["image"].astype(int) - whole["image"].astype(int))
        assert whole["image"].std() > 0 and difference.max() <= 3


def test_training_logs_the_tasks_own_figures(judge: Path, tmp_path: Path) -> None:
    spec = load_registry().models["dcgan"]
    settings = {section: dict(part) for section, part in spec.example.items()}
    settings["train"] |= {"score": True, "device": "cpu", "evaluate_every": 6}
    settings["data"]["extractor"] = str(judge)
    api.train("dcgan", tmp_path / "gan", settings=settings)
    lines = (tmp_path / "gan" / "train" / "metrics.jsonl").read_text().splitlines()
    scored = [r for r in map(json.loads, lines) if "validation_frechet_distance_cnn" in r]
    assert [record["step"] for record in scored] == [6, 12]
    measured = api.evaluate(tmp_path / "gan").metrics["frechet_distance_cnn"]
    assert scored[-1]["validation_frechet_distance_cnn"] == pytest.approx(measured, rel=1e-3)


def test_pictures_of_another_size_are_resized_for_the_extractor(judge: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3, 20, 20), np.uint8)
    found = compared(pixels, pixels, str(judge))
    assert found.facts["resizer"] == "lanczos"
    assert found.metrics["frechet_distance_cnn"] == pytest.approx(0, abs=1e-3)
    same = compared(pixels[:, :1, :12, :12], pixels[:, :1, :12, :12], str(judge))
    assert same.facts["resizer"] == "none"


def test_an_extractor_whose_weights_are_no_numbers_is_refused(judge: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cnn"
    shutil.copytree(judge, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["features.bias"][0] = np.nan
    save_file(tensors, folder / "model.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 1, 12, 12), np.uint8)
    with pytest.raises(BrokenFile, match="cnn gives features that are no numbers"):
        compared(pixels, pixels, str(folder))
    assert compared(pixels, pixels, str(judge)).facts["is_fid"] is False
