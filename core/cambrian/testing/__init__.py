"""What every registered model must keep, as functions that raise AssertionError where it does not.

    import pytest
    from cambrian import load_registry
    from cambrian.testing import CHECKS

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_contract(check, tmp_path):
        check(load_registry().models["mine"], tmp_path)

A check trains the small model that `ModelSpec.example` describes; it downloads nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cambrian.checkpoint import Checkpoint, describe, read_config
from cambrian.config import Recipe, apply
from cambrian.specs import ModelSpec

if TYPE_CHECKING:
    from cambrian.data import Prepared
    from cambrian.model import Batch, Model
    from cambrian.runs import Trained

PLAIN = {
    ".png",
    ".json",
    ".jsonl",
    ".safetensors",
    ".toml",
    ".txt",
    ".md",
    ".svg",
    ".model",
    ".codes",
}


def example(spec: ModelSpec) -> tuple[Any, Recipe]:
    """The config and recipe of the small model, in float32 on the CPU."""
    config, recipe = apply(spec.config(), spec.recipe, spec.example, f"example of {spec.name}")
    return apply(config, recipe, {"train": {"device": "cpu", "precision": "float32"}}, "contract")


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


def check_same_seed_same_model(spec: ModelSpec, folder: Path) -> None:
    """A seed decides over every weight; another seed gives other weights."""
    import torch

    data, _ = prepared(spec)
    one, same, other = (built(spec, data.config, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def check_config_survives_json(spec: ModelSpec, folder: Path) -> None:
    """config.json says all there is to say of a config."""
    data, _ = prepared(spec)
    text = json.dumps(describe(spec, data.config, "0"))
    assert read_config(json.loads(text), spec, folder) == data.config


def check_updates_move_their_own_parameters(spec: ModelSpec, folder: Path) -> None:
    """Every update moves something, and nothing that is not its module's."""
    import torch

    from cambrian.training.optimizers import Player
    from cambrian.training.worker import Worker

    data, recipe = prepared(spec)
    model = built(spec, data.config).train()
    worker, batch = Worker(model, torch.float32, compiled=False), first_batch(data)
    for index, update in enumerate(model.updates()):
        player = Player(update, recipe.optimizer)
        before = [p.detach().clone() for p in model.parameters()]
        worker.gradients(index, [batch], player.parameters)
        player.step(0, 1, 0.0)
        own = {id(p) for p in player.parameters}
        pairs = list(zip(model.parameters(), before, strict=True))
        assert any(not torch.equal(p, old) for p, old in pairs if id(p) in own), update.name
        assert all(torch.equal(p, old) for p, old in pairs if id(p) not in own), update.name


def check_one_batch_is_learnt(spec: ModelSpec, folder: Path) -> None:
    """A hundred steps of the first update alone, on one and the same batch, lower its loss there by
    a third. (Of two updates that play against each other, neither must win.)"""
    import torch

    from cambrian.training.optimizers import Player
    from cambrian.training.worker import Worker

    data, recipe = prepared(spec)
    model = built(spec, data.config).train()
    worker, batch = Worker(model, torch.float32, compiled=False), first_batch(data)
    player = Player(model.updates()[0], recipe.optimizer)
    losses: list[float] = []
    for step in range(100):
        losses += [float(worker.gradients(0, [batch], player.parameters)["loss"])]
        player.step(step, 100, recipe.train.clip)
    assert losses[-1] < 0.67 * losses[0], f"the loss went from {losses[0]:.4f} to {losses[-1]:.4f}"


def train_example(spec: ModelSpec, out: Path, stop_after: int | None = None) -> Trained:
    """Train the small model by the public API, perhaps only its first steps."""
    from cambrian import api

    asked = iter(range(1, 1 << 30))
    sections = {name: dict(part) for name, part in spec.example.items()}
    sections.setdefault("train", {}).update({"device": "cpu", "precision": "float32"})
    return api.train(
        spec.name, out, settings=sections, stop=lambda: stop_after == next(asked), force=True
    )


def check_resume_is_exact(spec: ModelSpec, folder: Path) -> None:
    """A run that was stopped half-way ends with the bytes of one that was not."""
    from cambrian import api

    whole = train_example(spec, folder / "whole")
    half = train_example(spec, folder / "half", whole.step // 2)
    assert not half.complete and half.step == whole.step // 2
    again = api.resume(folder / "half")
    assert again.complete
    for file in sorted((folder / "whole").rglob("*.safetensors")):
        other = folder / "half" / file.relative_to(folder / "whole")
        assert file.read_bytes() == other.read_bytes(), f"{other} differs"


def check_saved_model_is_the_model(spec: ModelSpec, folder: Path) -> None:
    """What is saved loads bit-equal, twice, and consists of plain files only."""
    import torch

    from cambrian.checkpoint import save_weights

    trained = train_example(spec, folder / "model")
    checkpoint = trained.checkpoint
    assert checkpoint is not None
    model = checkpoint.model()
    save_weights(folder / "copy", spec, checkpoint.config, model)
    again = dataclasses.replace(checkpoint, path=folder / "copy").model()
    tensors = again.state_dict()
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())
    strange = [p for p in folder.rglob("*") if p.is_file() and p.suffix not in PLAIN]
    assert not strange, f"{strange[0]} is no plain file"
    assert Checkpoint.open(folder / "model", [spec]).spec is spec


def check_export_equals_the_model(spec: ModelSpec, folder: Path) -> None:
    """Every exporter that does not refuse the model writes what verifies, and verifies again."""
    from cambrian import api
    from cambrian.registry import load_registry

    trained = train_example(spec, folder / "model")
    assert trained.checkpoint is not None
    model = trained.checkpoint.model()
    assert list(model.cases()), "cases() is empty: nothing would be proved"
    for name, exporter in load_registry().exporters.items():
        if exporter.repackages or exporter.exporter.load()().refuses(model, "float32"):
            continue
        artifact = api.export(folder / "model", folder / name, format=name)
        assert artifact.manifest.receipt["cases"]
        api.verify(folder / name)


CHECKS: tuple[Callable[[ModelSpec, Path], None], ...] = (
    check_same_seed_same_model,
    check_config_survives_json,
    check_updates_move_their_own_parameters,
    check_one_batch_is_learnt,
    check_saved_model_is_the_model,
    check_resume_is_exact,
    check_export_equals_the_model,
)
