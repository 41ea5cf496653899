"""The small model that `ModelSpec.example` describes: its data, built, trained. Nothing is
downloaded for it."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cambrian.config import Changes, Recipe, apply
from cambrian.specs import ModelSpec

if TYPE_CHECKING:
    from cambrian.data import Prepared
    from cambrian.model import Batch, Model
    from cambrian.runs import Trained

# By their names, and by their first bytes: pickle's, and those of the zip of torch.save.
PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npz"}
MARKS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")
CPU = {"device": "cpu", "precision": "float32"}


def example(spec: ModelSpec) -> tuple[Any, Recipe]:
    """The config and recipe of the small model, in float32 on the CPU."""
    config, recipe = apply(spec.config(), spec.recipe, spec.example, f"example of {spec.name}")
    return apply(config, recipe, {"train": CPU}, "contract")


def example_settings(spec: ModelSpec) -> Changes:
    """The same as settings, to be given to `train` or written to a TOML file."""
    sections = {name: dict(part) for name, part in spec.example.items()}
    sections.setdefault("train", {}).update(CPU)
    return sections


def prepared(spec: ModelSpec) -> tuple[Prepared, Recipe]:
    """The small model's data."""
    config, recipe = example(spec)
    return spec.data.load()(config, recipe, processor=None), recipe


def built(spec: ModelSpec, config: Any, seed: int = 0) -> Model:
    """The model, from a seed."""
    import torch

    torch.manual_seed(seed)
    return spec.model.load()(config)


def first_batch(data: Prepared) -> Batch:
    """The first training batch."""
    import torch

    from cambrian.training.loop import to_device

    return to_device(data.train.batch(0), torch.device("cpu"))


def train_example(spec: ModelSpec, out: Path, stop_after: int | None = None) -> Trained:
    """Train the small model by the public API, perhaps only its first steps."""
    from cambrian import api

    asked = iter(range(1, 1 << 30))
    return api.train(
        spec.name,
        out,
        settings=example_settings(spec),
        stop=lambda: stop_after == next(asked),
        force=True,
    )


@cache
def shelf() -> Path:
    """Where models lie that checks of this process share."""
    folder = tempfile.mkdtemp(prefix="cambrian-examples-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@cache
def trained_example(spec_name: str) -> Trained:
    """The trained small model of a registered architecture, made once a process and shared by the
    checks that only read it."""
    from cambrian.registry import load_registry

    return train_example(load_registry().models[spec_name], shelf() / spec_name)


def pickled(folder: Path) -> list[str]:
    """The files below a folder that are, or may be, pickles: what no checkpoint may hold."""
    return [
        path.name
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.suffix != ".safetensors"  # begins with a number, which may be anything
        and (path.suffix in PICKLES or path.read_bytes()[:4].startswith(MARKS))
    ]
