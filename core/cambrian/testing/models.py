"""What every registered architecture must keep. A check trains the small model that
`ModelSpec.example` describes, and raises AssertionError, with a sentence, where it is not kept."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cambrian.checkpoint import Checkpoint, describe, read_config
from cambrian.errors import UsageError
from cambrian.specs import ModelSpec
from cambrian.testing.commands import cambrian
from cambrian.testing.examples import (
    built,
    example,
    example_settings,
    first_batch,
    pickled,
    prepared,
    train_example,
    trained_example,
)
from cambrian.testing.exported import exported_example, refusal

if TYPE_CHECKING:
    from torch import nn

ModelCheck = Callable[[ModelSpec, Path], None]
STEADY: dict[str, Any] = {"schedule": "constant", "warmup_steps": 0}  # a rate that is never 0


def check_interface(spec: ModelSpec, folder: Path) -> None:
    """Every Ref leads to what its field says; the config is a frozen dataclass with a default for
    every field; the settings of `example` fit."""
    from cambrian.data import Processor
    from cambrian.model import Model
    from cambrian.pipeline import Pipeline

    for name, wanted in {"model": Model, "processor": Processor, "pipeline": Pipeline}.items():
        found: Any = getattr(spec, name).load()
        assert isinstance(found, type) and issubclass(found, wanted), (
            f"{name} names {found!r}, which is no subclass of cambrian.{wanted.__name__}"
        )
        missing = sorted(getattr(found, "__abstractmethods__", ()))
        assert not missing, f"{found.__name__} lacks {', '.join(missing)}"
    assert callable(spec.data.load()), f"data names {spec.data.target}, which cannot be called"
    if spec.weights is not None:
        weights: Any = spec.weights.load()
        assert all(callable(getattr(weights, name, None)) for name in ("load", "save")), (
            f"weights names {spec.weights.target}, which has no load and save"
        )
    parameters = getattr(spec.config, "__dataclass_params__", None)
    assert parameters and parameters.frozen, f"{spec.config.__name__} is no frozen dataclass"
    needed = [f.name for f in dataclasses.fields(spec.config) if no_default(f)]
    assert not needed, f"{spec.config.__name__} has no default for {', '.join(needed)}"
    assert spec.summary and spec.task, "summary or task is empty"
    example(spec)


def no_default(field: dataclasses.Field[Any]) -> bool:
    """Whether a field must be given."""
    return field.default is field.default_factory is dataclasses.MISSING


def check_parts_are_the_models_own(spec: ModelSpec, folder: Path) -> None:
    """Updates and graphs have names, each once, and are about the model's own parameters; every
    case calls graphs that there are."""
    import torch

    data, _ = prepared(spec)
    try:
        with torch.device("meta"):
            spec.model.load()(data.config)
    except Exception as error:
        raise AssertionError(f"it cannot be built on torch's meta device: {error}") from error
    model = built(spec, data.config)
    own = {id(p) for p in model.parameters()}
    updates, graphs = model.updates(), model.graphs()
    assert updates, "updates() is empty: nothing could be trained"
    assert graphs, "graphs() is empty: nothing could be exported"
    for what, parts in (("update", updates), ("graph", graphs)):
        names = [part.name for part in parts]
        assert len({*names}) == len(names), f"two {what}s have the same name: {', '.join(names)}"
        for part in parts:
            foreign = [n for n, p in part.module.named_parameters() if id(p) not in own]
            assert not foreign, f"{what} {part.name} has a parameter of its own: {foreign[0]}"
    cases = list(model.cases())
    assert cases, "cases() is empty: nothing would be proved of an export"
    called = {graph for case in cases for graph, _ in case.calls}
    assert called == {graph.name for graph in graphs}, (
        f"cases() call {', '.join(sorted(called))}, and graphs() are "
        f"{', '.join(sorted(graph.name for graph in graphs))}"
    )


def check_same_seed_same_model(spec: ModelSpec, folder: Path) -> None:
    """A seed decides over every weight; another seed gives other weights."""
    import torch

    data, _ = prepared(spec)
    one, same, other = (built(spec, data.config, seed).state_dict() for seed in (0, 0, 1))
    for name in one:
        assert torch.equal(one[name], same[name]), f"{name} differs though the seed is the same"
    assert any(not torch.equal(one[name], other[name]) for name in one), (
        "another seed gives the same weights"
    )


def check_config_survives_json(spec: ModelSpec, folder: Path) -> None:
    """config.json says all there is to say of a config."""
    data, _ = prepared(spec)
    text = json.dumps(describe(spec, data.config, "0"))
    again = read_config(json.loads(text), spec, folder)
    assert again == data.config, f"{data.config} came back as {again}"


def check_processor_survives_files(spec: ModelSpec, folder: Path) -> None:
    """The processor that the data made is of the class that the spec names, and comes back from its
    files as it was: saved again, it writes the same bytes."""
    processor, kind = prepared(spec)[0].processor, spec.processor.load()
    assert isinstance(processor, kind), (
        f"the data made a {type(processor).__name__}, and processor names {spec.processor.target}"
    )
    for name in ("once", "twice"):
        (folder / name).mkdir()
    processor.save(folder / "once")
    kind.load(folder / "once").save(folder / "twice")
    first, second = (
        {
            p.relative_to(folder / name): p.read_bytes()
            for p in (folder / name).rglob("*")
            if p.is_file()
        }
        for name in ("once", "twice")
    )
    assert first.keys() == second.keys(), f"it wrote {sorted(first)}, then {sorted(second)}"
    differ = [str(name) for name in first if first[name] != second[name]]
    assert not differ, f"{differ[0]} differs once it has been read and written again"


def check_batches_depend_on_their_number_alone(spec: ModelSpec, folder: Path) -> None:
    """The same batch by the same number, whatever was asked for before, in this preparation and
    in another: what exact resume rests on."""
    one, again = prepared(spec)[0], prepared(spec)[0]
    last = 2 * len(one.train) + 1
    wanted = {index: one.train.batch(index) for index in (0, 1, last)}
    for index in (last, 0, 1):
        found = again.train.batch(index)
        assert wanted[index].keys() == found.keys(), f"batch {index} has other arrays"
        for name, array in wanted[index].items():
            other = found[name]
            same = (array.dtype, array.shape) == (other.dtype, other.shape)
            same = same and array.tobytes() == other.tobytes()  # see `differing`
            assert same, f"batch {index} differs in {name} when it is asked for in another order"


def check_updates_move_their_own_parameters(spec: ModelSpec, folder: Path) -> None:
    """Every update moves something by its gradient, and nothing that is not its module's."""
    import torch

    from cambrian.training.optimizers import Player
    from cambrian.training.worker import Worker

    data, recipe = prepared(spec)
    model = built(spec, data.config).train()
    worker, batch = Worker(model, torch.float32, compiled=False), first_batch(data)
    for index, update in enumerate(model.updates()):
        player = Player(update, dataclasses.replace(recipe.optimizer, **STEADY, weight_decay=0.0))
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        worker.gradients(index, [batch], player.parameters)
        player.step(0, 1, 0.0)
        own = {id(p) for p in player.parameters}
        moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        ours = {name for name, p in model.named_parameters() if id(p) in own}
        assert moved & ours, f"update {update.name} moves nothing"
        assert moved <= ours, (
            f"update {update.name} moves {min(moved - ours)}, which is not its own"
        )


def check_one_batch_is_learnt(spec: ModelSpec, folder: Path) -> None:
    """A hundred steps of the first update alone, on one and the same batch, lower its loss there by
    a third, by the settings of `example`; every step draws the same random numbers. (Of two updates
    that play against each other, neither must win.)"""
    import torch

    from cambrian.training.device import seed_step
    from cambrian.training.optimizers import Player
    from cambrian.training.worker import Worker

    data, recipe = prepared(spec)
    model = built(spec, data.config).train()
    worker, batch = Worker(model, torch.float32, compiled=False), first_batch(data)
    player = Player(model.updates()[0], recipe.optimizer)
    losses: list[float] = []
    for step in range(100):
        seed_step(recipe.train.seed, 0, torch.device("cpu"))
        losses += [float(worker.gradients(0, [batch], player.parameters)["loss"])]
        player.step(step, 100, recipe.train.clip)
    assert losses[-1] < losses[0] - 0.33 * abs(losses[0]), (
        f"the loss went from {losses[0]:.4f} to {losses[-1]:.4f}; is example's learning rate right?"
    )


def check_saved_model_is_the_model(spec: ModelSpec, folder: Path) -> None:
    """What is saved loads bit-equal, opens as this architecture, and consists of plain files."""
    import torch

    from cambrian.checkpoint import save_weights

    checkpoint = trained_example(spec.name).checkpoint
    assert checkpoint is not None
    model = checkpoint.model()
    save_weights(folder / "copy", spec, checkpoint.config, model)
    tensors = dataclasses.replace(checkpoint, path=folder / "copy").model().state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, tensors[name]), f"{name} is not loaded as it was saved"
    for root in (folder, checkpoint.path):
        strange = pickled(root)
        assert not strange, f"{strange[0]} is no plain file"
    assert Checkpoint.open(checkpoint.path, [spec]).spec is spec


def check_tied_weights_stay_tied(spec: ModelSpec, folder: Path) -> None:
    """Parameters that are one when a model is built are one when it has been trained and loaded."""
    checkpoint = trained_example(spec.name).checkpoint
    assert checkpoint is not None
    wanted, found = ties(built(spec, checkpoint.config)), ties(checkpoint.model())
    lost = sorted(" = ".join(names) for names in wanted - found)
    assert not lost, f"no longer tied once loaded: {lost[0]}"
    assert not found - wanted, f"tied only once loaded: {sorted(map(sorted, found - wanted))[0]}"


def ties(model: nn.Module) -> set[tuple[str, ...]]:
    """The groups of names that are one parameter."""
    names: defaultdict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return {tuple(sorted(group)) for group in names.values() if len(group) > 1}


def check_resume_is_exact(spec: ModelSpec, folder: Path) -> None:
    """A run that was stopped half-way ends with the bytes of one that was not."""
    from cambrian import api

    whole = trained_example(spec.name)
    assert whole.checkpoint is not None
    assert whole.step > 1, "example trains a single step, which cannot be stopped half-way"
    half = train_example(spec, folder / "half", whole.step // 2)
    assert not half.complete and half.step == whole.step // 2, "it did not stop when asked to"
    assert api.resume(folder / "half").complete
    differing(whole.checkpoint.path, folder / "half")


def differing(folder: Path, other: Path) -> None:
    """AssertionError where a safetensors file of `folder` is not that of `other`."""
    files = sorted(folder.rglob("*.safetensors"))
    assert files, f"there is no safetensors file in {folder.name}"
    for file in files:
        name = file.relative_to(folder)
        assert (other / name).is_file(), f"{name} is missing"
        # Not in the assert: pytest would look for where they differ, in CI for hours.
        same = file.read_bytes() == (other / name).read_bytes()
        assert same, f"{name} differs"


def check_evaluation_is_finite(spec: ModelSpec, folder: Path) -> None:
    """`eval` of the trained model gives figures, all finite, or says what it needs for any."""
    figures = evaluated(spec)
    if figures is None:
        return
    assert figures, "there are no figures"
    wrong = [name for name, value in figures.items() if not math.isfinite(value)]
    assert not wrong, f"{wrong[0]} is {figures[wrong[0]]}"


def evaluated(spec: ModelSpec) -> Mapping[str, float] | None:
    """The figures of the trained model; None where it has none of itself, as a GAN has not."""
    from cambrian import api

    try:
        return api.evaluate(trained_example(spec.name).folder, device="cpu").metrics
    except UsageError:
        return None


def measurable(spec: ModelSpec) -> bool:
    """Whether `eval` is to give figures; where it fails, the command will say how."""
    try:
        return evaluated(spec) is not None
    except Exception:
        return True


def check_export_equals_the_model(spec: ModelSpec, folder: Path) -> None:
    """Every exporter that does not refuse the model writes what verifies, and verifies again; one
    of them at least does not refuse it."""
    from cambrian import api
    from cambrian.registry import load_registry

    exporters = {n: e for n, e in load_registry().exporters.items() if not e.repackages}
    reasons = {name: refusal(exporter, spec.name) for name, exporter in exporters.items()}
    assert not all(reasons.values()), f"every exporter refuses it: {reasons}"
    for name in (name for name, why in reasons.items() if not why):
        artifact = exported_example(name, spec.name)
        assert artifact.manifest.receipt["cases"], f"{name} proved nothing"
        api.verify(artifact.path, device="cpu")


def check_command_line_round(spec: ModelSpec, folder: Path) -> None:
    """train, info, eval, export, verify and run, each a process of its own, as a person types
    them; run is given `ModelSpec.example_inputs`, and its results are JSON."""
    import tomli_w
    from PIL import Image

    Image.linear_gradient("L").resize((40, 32)).save(folder / "picture.png")
    (folder / "example.toml").write_text(tomli_w.dumps(example_settings(spec)), "utf-8")
    cambrian(folder, "train", spec.name, "--out", "model", "--config", "example.toml")
    assert json.loads(cambrian(folder, "info", "model", "--json"))
    if measurable(spec):
        assert json.loads(cambrian(folder, "eval", "model", "--json"))
    cambrian(folder, "export", "model", "exported", "--format", chosen_format(spec))
    cambrian(folder, "verify", "exported")
    said = cambrian(folder, "run", "exported", "--json", "--", *spec.example_inputs)
    lines = said.splitlines()
    assert all(json.loads(line) is not None for line in lines)
    wanted = max(len(spec.example_inputs), 1)
    assert len(lines) >= wanted, f"run gives {len(lines)} results for {wanted} inputs"


def chosen_format(spec: ModelSpec) -> str:
    """The first format that does not refuse the model."""
    from cambrian.registry import load_registry

    exporters = load_registry().exporters
    found = [name for name, exporter in exporters.items() if not refusal(exporter, spec.name)]
    assert found, "every exporter refuses it"
    return found[0]


MODEL_CHECKS: tuple[ModelCheck, ...] = (
    check_interface,
    check_parts_are_the_models_own,
    check_same_seed_same_model,
    check_config_survives_json,
    check_processor_survives_files,
    check_batches_depend_on_their_number_alone,
    check_updates_move_their_own_parameters,
    check_one_batch_is_learnt,
    check_saved_model_is_the_model,
    check_tied_weights_stay_tied,
    check_resume_is_exact,
    check_evaluation_is_finite,
    check_export_equals_the_model,
    check_command_line_round,
)
