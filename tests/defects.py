"""Plugins with one defect each, made from the good one that `cambrian new plugin` writes: what the
conformance kit must catch, by which check, and what it says then."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cambrian_novel
import numpy as np
import torch
from cambrian_novel.config import NovelConfig
from cambrian_novel.data import Scaler, prepare
from cambrian_novel.model import Novel
from cambrian_novel.pipeline import PointClassification
from torch import Tensor, nn

from cambrian import Graph, ModelSpec, Prepared, Ref, Update, hookimpl
from cambrian.model import Batch, Losses
from defect import Defect

DEFECTS: dict[str, Defect] = {}


def defect(what: str, check: str, says: str, field: str = "model") -> Any:
    """Note a class or function as one field of a spec that is good otherwise."""

    def note(thing: Any) -> Any:
        name = thing.__name__.lower()
        value = Ref(f"defects:{thing.__name__}") if field != "config" else thing
        DEFECTS[name] = Defect(name, what, check, says, {field: value})
        return thing

    return note


def note(name: str, what: str, check: str, says: str, **changes: Any) -> None:
    """Note a defect that needs no code."""
    DEFECTS[name] = Defect(name, what, check, says, changes)


@hookimpl
def register_models() -> Iterable[ModelSpec]:
    (good,) = cambrian_novel.register_models()
    yield dataclasses.replace(good, name="good")
    for name, changes in UNUSUAL.items():
        yield dataclasses.replace(good, name=name, **changes)
    for each in DEFECTS.values():
        yield dataclasses.replace(good, name=each.name, **each.changes)


note(
    "absent",
    "a Ref to a module that is not there",
    "interface",
    "Cannot load nowhere:Model",
    model=Ref("nowhere:Model"),
)
note(
    "no-example",
    "an example with an unknown setting",
    "interface",
    "unknown key 'hidden_sise'",
    example={"model": {"hidden_sise": 3}},
)
note("speechless", "an empty summary", "interface", "summary or task is empty", summary="")
note("no-inputs", "no example of an input for `run`", "command_line_round", "There is no input",
     example_inputs=())  # fmt: skip


@defect("a network that is no cambrian.Model", "interface", "no subclass of cambrian.Model")
class NoModel(nn.Module):
    pass


@defect("an abstract method left out", "interface", "NoProbe lacks probe", "pipeline")
class NoProbe(PointClassification):
    probe = None  # pyright: ignore


NoProbe.__abstractmethods__ = frozenset({"probe"})


@defect("a config that can be changed", "interface", "no frozen dataclass", "config")
@dataclass
class Thawed:
    num_features: int = 2


@defect("a config field without a default", "interface", "no default for hidden_size", "config")
@dataclass(frozen=True, kw_only=True)
class Needy:
    hidden_size: int


@defect("no updates", "parts_are_the_models_own", "nothing could be trained")
class Untrained(Novel):
    def updates(self) -> Sequence[Update]:
        return []


@defect("no cases", "parts_are_the_models_own", "nothing would be proved")
class Unproved(Novel):
    def cases(self) -> Any:
        return []


@defect(
    "a graph that no case calls", "parts_are_the_models_own", "and graphs\\(\\) are model, more"
)
class Uncalled(Novel):
    def graphs(self) -> Sequence[Graph]:
        (graph,) = super().graphs()
        return [graph, dataclasses.replace(graph, name="more")]


@defect("two updates of one name", "parts_are_the_models_own", "two updates have the same name")
class Twice(Novel):
    def updates(self) -> Sequence[Update]:
        return [*super().updates(), *super().updates()]


@defect("an update of weights that are not the model's", "parts_are_the_models_own",
        "update stray has a parameter of its own")  # fmt: skip
class Stray(Novel):
    def updates(self) -> Sequence[Update]:
        return [Update(name="stray", module=nn.Linear(2, 2), loss=self.loss)]


@defect("weights drawn from another generator than torch's", "same_seed_same_model",
        "classifier.bias differs though the seed is the same")  # fmt: skip
class Unseeded(Novel):
    def __init__(self, config: NovelConfig) -> None:
        super().__init__(config)
        drawn = np.random.default_rng().standard_normal(config.num_labels)
        self.classifier.bias.data.copy_(torch.from_numpy(drawn))


@defect("weights that no seed changes", "same_seed_same_model", "another seed gives the same")
class Constant(Novel):
    def __init__(self, config: NovelConfig) -> None:
        super().__init__(config)
        for number, parameter in enumerate(self.parameters()):
            parameter.data.copy_(
                torch.linspace(-1, 1 + number, parameter.numel()).view_as(parameter)
            )


@defect("a config that JSON changes", "config_survives_json", "came back as", "config")
@dataclass(frozen=True, kw_only=True)
class Tuples(NovelConfig):
    sizes: Any = (1, 2)


class Counting:
    """Batches that depend on how often they were asked for."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.asked = inner, 0

    def __len__(self) -> int:
        return len(self.inner)

    def batch(self, index: int) -> Any:
        self.asked += 1
        return self.inner.batch(self.asked)


@defect("a batch that depends on what was asked for before",
        "batches_depend_on_their_number_alone", "differs in points", "data")  # fmt: skip
def counted(*arguments: Any, **named: Any) -> Prepared:
    found = prepare(*arguments, **named)
    return dataclasses.replace(found, train=Counting(found.train))


@defect("an update that moves nothing", "updates_move_their_own_parameters",
        "update classifier moves nothing")  # fmt: skip
class Still(Novel):
    def loss(self, batch: Batch) -> Losses:
        zero = sum(parameter.sum() for parameter in self.parameters()) * 0.0
        return {"loss": zero + 1.0}


@defect("a loss that changes weights of another update", "updates_move_their_own_parameters",
        "update layers moves classifier.bias, which is not its own")  # fmt: skip
class Meddling(Novel):
    def updates(self) -> Sequence[Update]:
        return [Update(name="layers", module=self.layers, loss=self.loss)]

    def loss(self, batch: Batch) -> Losses:
        self.classifier.bias.data += 1
        return super().loss(batch)


@defect("inputs that are lost on the way", "one_batch_is_learnt", "the loss went from")
class Guessing(Novel):
    def loss(self, batch: Batch) -> Losses:
        return super().loss({**batch, "points": torch.zeros_like(batch["points"])})


class Swapping:
    """Weights that exchange two tensors where they are read."""

    def load(self, tensors: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
        return {
            name: -value if name == "classifier.bias" else value for name, value in tensors.items()
        }

    def save(self, tensors: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
        return dict(tensors)


SWAPPING = Swapping()
note("swapped", "weights that are read otherwise than written", "saved_model_is_the_model",
     "classifier.bias is not loaded as it was saved", weights=Ref("defects:SWAPPING"))  # fmt: skip


class Pickling(Scaler):
    def save(self, folder: Path) -> None:
        super().save(folder)
        (folder / "scaler.pkl").write_bytes(b"")


@defect("a pickle in the checkpoint", "saved_model_is_the_model", "scaler.pkl is no plain file",
        "data")  # fmt: skip
def pickled(*arguments: Any, **named: Any) -> Prepared:
    found = prepare(*arguments, **named)
    scaler: Any = found.processor
    return dataclasses.replace(found, processor=Pickling(scaler.mean, scaler.deviation))


@defect("a processor of another class", "processor_survives_files",
        "the data made a Scaler, and processor names defects:Other", "processor")  # fmt: skip
class Other(Scaler):
    pass


class Rounding(Scaler):
    @classmethod
    def load(cls, folder: Path) -> Rounding:
        found = super().load(folder)
        return cls([round(each / 2, 3) for each in found.mean], found.deviation)


def rounded(*arguments: Any, **named: Any) -> Prepared:
    found = prepare(*arguments, **named)
    scaler: Any = found.processor
    return dataclasses.replace(found, processor=Rounding(scaler.mean, scaler.deviation))


note("rounding", "a processor that its files change", "processor_survives_files",
     "scaler.json differs once it has been read", processor=Ref("defects:Rounding"),
     data=Ref("defects:rounded"))  # fmt: skip


class Creeping(Scaler):
    @classmethod
    def load(cls, folder: Path) -> Creeping:
        found = super().load(folder)
        return cls([each + 1 for each in found.mean], found.deviation)

    def save(self, folder: Path) -> None:
        super().save(folder)
        (folder / "scaler").write_bytes((folder / "scaler.json").read_bytes())
        (folder / "scaler.json").write_text(json.dumps({"mean": [0, 0], "deviation": [1, 1]}))


def creeping(*arguments: Any, **named: Any) -> Prepared:
    found = prepare(*arguments, **named)
    scaler: Any = found.processor
    return dataclasses.replace(found, processor=Creeping(scaler.mean, scaler.deviation))


note("creeping", "a file without a suffix that changes", "processor_survives_files",
     "scaler differs once it has been read", processor=Ref("defects:Creeping"),
     data=Ref("defects:creeping"))  # fmt: skip


class Disguised(Scaler):
    def save(self, folder: Path) -> None:
        super().save(folder)
        (folder / "extra.json").write_bytes(pickle.dumps({"a": 1}))


@defect("a pickle by another name", "saved_model_is_the_model", "extra.json is no plain file",
        "data")  # fmt: skip
def disguised(*arguments: Any, **named: Any) -> Prepared:
    found = prepare(*arguments, **named)
    scaler: Any = found.processor
    return dataclasses.replace(found, processor=Disguised(scaler.mean, scaler.deviation))


@defect("a network that needs numbers to be laid out", "parts_are_the_models_own",
        "cannot be built on torch's meta device")  # fmt: skip
class Numeric(Novel):
    def __init__(self, config: NovelConfig) -> None:
        super().__init__(config)
        self.rates = [rate.item() for rate in torch.linspace(0, 1, 3)]


@defect("tied weights that come apart where they are loaded", "tied_weights_stay_tied",
        "no longer tied once loaded: layers.2.weight = layers.4.weight")  # fmt: skip
class Untied(Novel):
    def __init__(self, config: NovelConfig) -> None:
        super().__init__(dataclasses.replace(config, num_hidden_layers=3))
        self.layers[4].weight = self.layers[2].weight

    def load_state_dict(self, *arguments: Any, **named: Any) -> Any:
        found = super().load_state_dict(*arguments, **named)
        self.layers[4].weight = nn.Parameter(self.layers[2].weight.detach().clone())
        return found


@defect("a loss that counts its own calls", "resume_is_exact", "differs")
class Remembering(Novel):
    def __init__(self, config: NovelConfig) -> None:
        super().__init__(config)
        self.calls = 0

    def loss(self, batch: Batch) -> Losses:
        self.calls += 1
        found = super().loss(batch)
        return {**found, "loss": found["loss"] * self.calls}


@defect("a figure that is not a number", "evaluation_is_finite", "is nan")
class Undefined(Novel):
    def evaluate(self, batch: Batch) -> Losses:
        return {**super().evaluate(batch), "spread": torch.tensor(float("nan"))}


@defect("an export that computes something else", "export_equals_the_model", "differ")
class Otherwise(Novel):
    def forward(self, points: Tensor) -> tuple[Tensor]:
        (logits,) = super().forward(points)
        return (logits * (1.001 if torch.compiler.is_exporting() else 1.0),)


@defect("an export for one batch size only", "export_equals_the_model", "batch")
class Fixed(Novel):
    def forward(self, points: Tensor) -> tuple[Tensor]:
        if torch.compiler.is_exporting():
            points = points.reshape(2, -1)[:, : points.shape[-1]]
        return super().forward(points)


@defect("a pipeline that fails with an exception of its own", "command_line_round",
        "cambrian eval .* ends with 1: .*internal error", "pipeline")  # fmt: skip
class Failing(PointClassification):
    def __call__(self, inputs: Sequence[str], **options: Any) -> list[Any]:
        raise KeyError("points")


@defect("a data set that is downloaded", "same_seed_same_model", "reaches for the network", "data")
def fetched(*arguments: Any, **named: Any) -> Prepared:
    import urllib.request
    from contextlib import suppress

    with suppress(OSError):
        urllib.request.urlopen("http://example.com/points.csv", timeout=1)
    return prepare(*arguments, **named)


class Denoising(Novel):
    """Its loss depends on what it draws, as a diffusion model's does."""

    def loss(self, batch: Batch) -> Losses:
        points = batch["points"]
        noisy = points + torch.rand(len(points), 1) * torch.randn_like(points)
        return super().loss({**batch, "points": noisy})


def with_gaps(*arguments: Any, **named: Any) -> Prepared:
    """Every batch has an array with a NaN in it."""
    found = prepare(*arguments, **named)
    batches: Any = found.train
    whole = batches.batch

    def batch(index: int) -> Any:
        return {**whole(index), "weights": np.array([1.0, np.nan], np.float32)}

    batches.batch = batch
    return found


class Plain(Scaler):
    """Its file has no suffix."""

    @classmethod
    def load(cls, folder: Path) -> Plain:
        return cls(**json.loads((folder / "scaler").read_text()))

    def save(self, folder: Path) -> None:
        text = json.dumps({"mean": self.mean, "deviation": self.deviation})
        (folder / "scaler").write_text(text)


def plainly(*arguments: Any, **named: Any) -> Prepared:
    found = prepare(*arguments, **named)
    scaler: Any = found.processor
    return dataclasses.replace(found, processor=Plain(scaler.mean, scaler.deviation))


# What is right, though few do it: no check may say otherwise.
_EXAMPLE = cambrian_novel.register_models()[0].example
UNUSUAL: dict[str, dict[str, Any]] = {
    "denoising": {"model": Ref("defects:Denoising")},
    "gaps": {"data": Ref("defects:with_gaps")},
    "suffixless": {"processor": Ref("defects:Plain"), "data": Ref("defects:plainly")},
    "from-the-peak-to-nothing": {
        "example": {
            **_EXAMPLE,
            "optimizer": {"warmup_steps": 0, "min_lr_ratio": 0.0, "schedule": "linear"},
        }
    },
}
