"""Trainers with one defect each, made from the loop: what the conformance kit must catch."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cambrian import Job, LoopTrainer, Outcome, Ref, TrainerSpec, hookimpl
from defect import Defect

DEFECTS: dict[str, Defect] = {}
FITS = itertools.count()


def defect(what: str, check: str, says: str, field: str = "trainer") -> Any:
    """Note a class as one field of a spec that is good otherwise."""

    def note(thing: Any) -> Any:
        name = thing.__name__.lower()
        value = Ref(f"defects_of_trainers:{thing.__name__}") if field == "trainer" else thing
        DEFECTS[name] = Defect(name, what, check, says, {field: value})
        return thing

    return note


@hookimpl
def register_trainers() -> Iterable[TrainerSpec]:
    good = TrainerSpec(name="good", summary="the loop", trainer=Ref("defects_of_trainers:Good"))
    yield good
    for each in DEFECTS.values():
        yield replace(good, name=each.name, **each.changes)


class Good(LoopTrainer):
    pass


@defect("a class that is no cambrian.Trainer", "interface", "no subclass of cambrian.Trainer")
class NoTrainer:
    pass


@defect("settings that can be changed", "interface", "no frozen dataclass", "config")
@dataclass
class Thawed:
    rank: int = 8


@defect("settings that a file changes", "interface", "come back as", "config")
@dataclass(frozen=True, kw_only=True)
class Doubling:
    rank: int = 8

    def __post_init__(self) -> None:
        if self.rank > 0:
            object.__setattr__(self, "rank", self.rank * 2)


@defect("steps up the hill", "it_lowers_the_loss", "the held-out loss went from")
class Uphill(LoopTrainer):
    def fit(self, job: Job) -> Outcome:
        for update in (updates := job.model.updates()):
            object.__setattr__(update, "loss", self.reversed(update.loss))
        job.model.updates = lambda: updates  # pyright: ignore
        return super().fit(replace(job, observe=lambda model, step: {}))

    def reversed(self, loss: Any) -> Any:
        return lambda batch: (
            {"loss": -loss(batch)["loss"]} if torch.is_grad_enabled() else loss(batch)
        )


@defect("a pickle beside the state", "it_leaves_an_ordinary_checkpoint", "no plain file")
class Pickling(LoopTrainer):
    def fit(self, job: Job) -> Outcome:
        done = super().fit(job)
        (job.folder / "trainer.pkl").write_bytes(b"")
        return done


@defect("nothing that is trained", "it_leaves_an_ordinary_checkpoint", "nothing moved")
class Idle(LoopTrainer):
    def fit(self, job: Job) -> Outcome:
        optimizer = replace(job.recipe.optimizer, lr=0.0, muon_lr=0.0)
        return super().fit(replace(job, recipe=replace(job.recipe, optimizer=optimizer)))


@defect(
    "no ear for Ctrl-C", "interrupted_it_saves_and_resumes_exactly", "interrupted in step 7, it"
)
class Deaf(LoopTrainer):
    def fit(self, job: Job) -> Outcome:
        job.stop()
        return super().fit(replace(job, stop=lambda: False))


@defect("another seed at every start", "interrupted_it_saves_and_resumes_exactly", "differs")
class Restless(LoopTrainer):
    def fit(self, job: Job) -> Outcome:
        optimizer = replace(job.recipe.optimizer, eps=1e-8 * (1 + next(FITS)))
        return super().fit(replace(job, recipe=replace(job.recipe, optimizer=optimizer)))


@defect("a folder made before the settings are looked at", "it_refuses_before_it_writes",
        "it wrote before it refused")  # fmt: skip
class Hasty(LoopTrainer):
    def check(self, job: Job) -> None:
        job.folder.mkdir(parents=True, exist_ok=True)
        super().check(job)


@defect("a run of no steps", "it_refuses_before_it_writes", "it does not refuse")
class Lax(LoopTrainer):
    def check(self, job: Job) -> None:
        pass

    def fit(self, job: Job) -> Outcome:
        train = replace(job.recipe.train, steps=max(1, job.recipe.train.steps))
        return super().fit(replace(job, recipe=dataclasses.replace(job.recipe, train=train)))


@defect("a log in the working folder", "it_writes_in_its_folder_alone", "it wrote log.txt outside")
class Littering(LoopTrainer):
    def fit(self, job: Job) -> Outcome:
        Path("log.txt").write_text("so far so good")
        return super().fit(job)


@defect("a switch of torch's left as it is", "it_leaves_the_process_as_it_was",
        "it leaves torch's float32 matmul precision other than it was")  # fmt: skip
class Switching(LoopTrainer):
    def fit(self, job: Job) -> Outcome:
        torch.set_float32_matmul_precision("medium")
        return super().fit(job)
