"""The trainer: one loop over a model's updates.

It knows nothing of what it trains. Whatever a step needs - rates, random numbers, which batch - is
a function of the run's settings and the step's number; what is not (weights, the optimizers'
moments, the average, the best loss so far) is the state that `state.py` keeps. Parameters that
require no gradient when the run begins are frozen: they are not moved, averaged or kept.
"""

# The kernels over lists of tensors are what torch's own optimizers call, but have no public names.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cambrian.data import Arrays, Batches
from cambrian.errors import CambrianError, UsageError
from cambrian.model import Batch, Model
from cambrian.training import Job, Outcome, Trainer
from cambrian.training.device import choose_device, choose_precision, seed_step, torch_settings
from cambrian.training.log import MetricsLog, draw_curve, read_metrics, require_tensorboard
from cambrian.training.optimizers import Player
from cambrian.training.state import (
    fingerprint,
    load_state,
    remove_leftovers,
    save_state,
    saved_states,
)
from cambrian.training.throughput import Throughput
from cambrian.training.worker import Worker


class LoopTrainer(Trainer):
    """Fits any model by its own updates, on the CPU or one GPU; resumes exactly."""

    def check(self, job: Job) -> None:
        """Refuse settings that cannot work."""
        check(job)

    def fit(self, job: Job) -> Outcome:
        """Train to the last step, or until told to stop."""
        check(job)
        with torch_settings(job.recipe.train):
            return Run(job).complete()


def check(job: Job) -> None:
    """Refuse settings that cannot work, before anything is spent on them."""
    train = job.recipe.train
    for name in ("steps", "batch_size", "accumulate", "log_every", "checkpoint_every"):
        if getattr(train, name) < 1:
            raise UsageError(f"train.{name} must be at least 1, not {getattr(train, name)}.")
    for name in ("seed", "evaluate_every", "evaluate_batches", "patience"):
        if getattr(train, name) < 0:
            raise UsageError(f"train.{name} cannot be negative; it is {getattr(train, name)}.")
    for name in ("lr", "muon_lr", "weight_decay", "warmup_steps"):
        if not getattr(job.recipe.optimizer, name) >= 0:
            value = getattr(job.recipe.optimizer, name)
            raise UsageError(f"optimizer.{name} cannot be negative; it is {value}.")
    choose_device(train.device)
    if not 0 <= train.ema < 1:
        raise UsageError(f"train.ema is a decay in [0, 1), not {train.ema}.")
    if train.patience and job.data.validation is None:
        raise UsageError("train.patience needs held-out data; give data.validation.")
    if train.tensorboard:
        require_tensorboard()


class Run:
    """One run: everything that changes from step to step."""

    def __init__(self, job: Job) -> None:
        self.job, self.model = job, job.model
        self.train, self.data = job.recipe.train, job.data
        self.device = choose_device(self.train.device)
        self.dtype = choose_precision(self.train.precision, self.device)
        self.model.to(self.device).train()
        self.players = [Player(u, job.recipe.optimizer) for u in self.model.updates()]
        self.moving = movable(self.model)
        named = self.model.named_parameters(remove_duplicate=False)
        self.frozen = {name: p for name, p in named if not p.requires_grad}
        self.frozen_sha256 = fingerprint(self.frozen) if self.frozen else ""
        self.averages = [value.clone() for value in self.moving] if self.train.ema else []
        self.losses: dict[str, Tensor] = {}  # the latest of every update, due or not
        self.done, self.best, self.best_step, self.waited = 0, math.inf, 0, 0
        self.last: dict[str, Any] = {}
        job.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(job.folder)
        if states := saved_states(job.folder):
            self.restore(states[-1])
        else:
            self.save()  # a disk that refuses shows now; a fine-tuned model's start is kept
        self.worker = Worker(self.model, self.dtype, self.train.compile)
        self.throughput = Throughput(self.device, self.data.unit)
        self.log = MetricsLog(job.folder, self.done, self.train.tensorboard)

    # -- the loop ---------------------------------------------------------------------------

    def complete(self) -> Outcome:
        """Go from where the run stands to its end."""
        stopped = False
        try:
            while self.done < self.train.steps and not self.exhausted() and not stopped:
                stopped = self.advance()
        finally:
            self.log.close()
            with suppress(OSError):  # a full disk is reported by what could not be saved
                draw_curve(self.job.folder)
        return Outcome(step=self.done, complete=not stopped, metrics=self.summary())

    def advance(self) -> bool:
        """Take one step and do what is due after it; return whether to stop."""
        self.losses |= self.step()
        losses = self.losses
        self.done += 1
        end = self.done == self.train.steps
        stop = self.job.stop() and not end
        if self.due(self.train.log_every) or end or stop:
            self.record(losses)
        evaluated = self.due(self.train.evaluate_every) or end
        if evaluated or self.due(self.train.checkpoint_every) or stop:
            self.require_finite(losses)
            with self.throughput.paused():
                if evaluated:
                    self.evaluate()
                if end or stop or self.exhausted() or self.due(self.train.checkpoint_every):
                    self.save()
        return stop

    def step(self) -> dict[str, Tensor]:
        """One step: every update that is due, in order; returns losses and gradient norms."""
        seed_step(self.train.seed, self.done, self.device)
        first = self.done * self.train.accumulate
        batches = [self.load(self.data.train, first + i) for i in range(self.train.accumulate)]
        losses: dict[str, Tensor] = {}
        for index, player in enumerate(self.players):
            if self.done % player.every or not player.parameters:
                continue
            with self.throughput.counting_flops():
                found = self.worker.gradients(index, batches, player.parameters)
            norm = player.step(self.done, self.train.steps, self.train.clip)
            self.worker.refresh()
            prefix = f"{player.name}_" if len(self.players) > 1 else ""
            losses |= {prefix + name: value for name, value in found.items()}
            losses[f"{prefix}grad_norm"] = norm
        if self.averages:
            # Shorter at first: an average over more steps than there were would hold the start.
            decay = min(self.train.ema, (1 + self.done) / (10 + self.done))
            torch._foreach_lerp_(self.averages, self.moving, 1 - decay)
        self.throughput.add(self.train.batch_size * self.train.accumulate * self.data.units_per_row)
        return losses

    def load(self, source: Batches, index: int) -> Batch:
        """A batch on the device."""
        return to_device(source.batch(index), self.device)

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps happens now."""
        return every > 0 and self.done % every == 0

    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return 0 < self.train.patience <= self.waited

    # -- what is done now and then ----------------------------------------------------------

    def record(self, losses: Mapping[str, Tensor]) -> None:
        """Log a step."""
        figures = self.require_finite(losses)
        rates = {"lr": self.players[0].rate(self.done - 1, self.train.steps)}
        event = {"step": self.done, **figures, **rates, **self.throughput.figures()}
        self.log.write(event)
        self.last |= event
        self.job.report({"steps": self.train.steps, **event})

    def require_finite(self, losses: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the losses as numbers; CambrianError if any is not finite."""
        figures = {name: float(value) for name, value in losses.items()}
        self.refuse_infinite(figures)
        return figures

    def require_finite_weights(self) -> None:
        """Refuse to save a state whose last update broke the weights."""
        sums = {name: float(p.detach().sum()) for name, p in self.model.named_parameters()}
        self.refuse_infinite(sums, "the sum of ")

    def refuse_infinite(self, figures: Mapping[str, float], what: str = "") -> None:
        """Raise CambrianError if any figure is not finite."""
        if bad := [name for name, value in figures.items() if not math.isfinite(value)]:
            states = saved_states(self.job.folder)
            kept = (
                f"the state of step {int(states[-1].name[5:])} is kept"
                if states
                else ("no state was saved yet")
            )
            raise CambrianError(
                f"Training stopped at step {self.done}: {what}{bad[0]} is {figures[bad[0]]}; "
                f"{kept}. Lower the learning rate (optimizer.lr), lengthen "
                "optimizer.warmup_steps, or use precision=float32."
            )

    def evaluate(self) -> None:
        """Measure the held-out loss, publish the model if it is the best so far, and let it be
        seen."""
        figures: dict[str, float] = {}
        better = False
        with self.averaged():
            if self.data.validation is not None:
                figures = evaluate(self, self.data.validation, self.train.evaluate_batches)
                self.refuse_infinite(figures, "held-out ")
                better = figures["loss"] < self.best
                if better:
                    self.best, self.best_step, self.waited = figures["loss"], self.done, 0
                    self.job.publish(self.model)
                else:
                    self.waited += 1
            self.model.eval()
            figures |= self.job.observe(self.model, self.done)
            self.model.train()
        if not figures:
            return
        event = {"step": self.done, **{f"validation_{k}": v for k, v in figures.items()}}
        self.log.write(event)
        self.last |= event
        self.job.report({"steps": self.train.steps, **event, "best": better})

    @contextmanager
    def averaged(self) -> Generator[None]:
        """Put the averaged weights, if there are any, in the model's place."""
        if not self.averages:
            yield
            return
        raw = [value.clone() for value in self.moving]
        torch._foreach_copy_(self.moving, self.averages)
        try:
            yield
        finally:
            torch._foreach_copy_(self.moving, raw)

    def save(self) -> None:
        """Keep the state; without held-out data the last model is the one to publish."""
        self.require_finite_weights()
        if self.data.validation is None and self.done:
            with self.averaged():
                self.job.publish(self.model)
        held = self.model.state_dict()
        groups: dict[str, Mapping[str, Tensor]] = {
            "weights": unique({k: v for k, v in held.items() if k not in self.frozen}),
            "optimizer": {k: v for player in self.players for k, v in player.state().items()},
        }
        if self.averages:
            groups["ema"] = {str(i): tensor for i, tensor in enumerate(self.averages)}
        facts = {
            "best": self.best if math.isfinite(self.best) else None,
            "best_step": self.best_step,
            "waited": self.waited,
            "frozen_sha256": self.frozen_sha256,
            "circumstances": self.circumstances(),
        }
        save_state(self.job.folder, self.done, groups, facts)

    def restore(self, folder: Path) -> None:
        """Take up a saved state."""
        groups, facts = load_state(folder)
        if facts.get("frozen_sha256", "") != self.frozen_sha256:
            raise CambrianError(
                f"The weights that the run in {self.job.folder} began with, and does not train, "
                "are others now, so it cannot go on exactly; put them back, or start a new run."
            )
        self.model.load_state_dict(groups["weights"], strict=False)
        for player in self.players:
            player.load_state(groups["optimizer"])
        for index, mean in enumerate(self.averages):
            mean.copy_(groups["ema"][str(index)])
        self.done, self.best_step = facts["step"], facts["best_step"]
        for record in read_metrics(self.job.folder):
            self.last |= record if record["step"] <= self.done else {}
        self.best = math.inf if facts["best"] is None else facts["best"]
        self.waited = facts["waited"]
        then, now = facts["circumstances"], self.circumstances()
        changed = [
            f"{key}: {then.get(key)} -> {now[key]}" for key in now if then.get(key) != now[key]
        ]
        note = {"note": "not bit-exact, for these differ: " + ", ".join(changed)} if changed else {}
        self.job.report({"step": self.done, "steps": self.train.steps, "resumed": True, **note})

    def circumstances(self) -> dict[str, Any]:
        """What the bits of a result depend on beside the settings."""
        return {
            "device": self.device.type,
            "precision": str(self.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "cores": os.cpu_count(),
        }

    def summary(self) -> dict[str, Any]:
        """The run in figures, for the model card and the caller."""
        held_out = {"best_validation_loss": self.best, "best_step": self.best_step}
        return {
            **self.last,
            **(held_out if math.isfinite(self.best) else {}),
            **self.circumstances(),
        }


def to_device(arrays: Arrays, device: torch.device) -> Batch:
    """Arrays as tensors on the device; on the CPU they share their memory."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if device.type == "cpu":
        return tensors
    return {name: t.to(device, non_blocking=True) for name, t in tensors.items()}


@torch.no_grad()
def evaluate(run: Run, source: Batches, limit: int = 0) -> dict[str, float]:
    """Mean metrics over the held-out batches, in float32."""
    count = min(limit, len(source)) if limit else len(source)
    return mean_metrics(run.model, (run.load(source, i) for i in range(count)))


def mean_metrics(model: Model, batches: Iterator[Batch]) -> dict[str, float]:
    """Mean of `model.evaluate` over batches, each weighted by its count; in eval mode."""
    model.eval()
    totals: dict[str, float] = {}
    seen = 0.0
    with torch.no_grad():
        for batch in batches:
            figures = {k: float(v) for k, v in model.evaluate(batch).items()}
            weight = figures.pop("count", float(len(next(iter(batch.values())))))
            seen += weight
            for name, value in figures.items():
                totals[name] = totals.get(name, 0.0) + value * weight
    model.train()
    means = {name: total / seen for name, total in totals.items()}
    return {**means, **model.derive(means)}


def movable(model: Model) -> list[Tensor]:
    """What training moves: the parameters that are not frozen, and buffers of real numbers such as
    running means, without which averaged weights would meet the statistics of other ones."""
    buffers = [value for value in model.buffers() if value.is_floating_point()]
    return [*(p.detach() for p in model.parameters() if p.requires_grad), *buffers]


def unique(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor once, under its first name; tied ones share their memory."""
    seen: dict[int, str] = {}
    for name, tensor in tensors.items():
        seen.setdefault(tensor.data_ptr() if tensor.numel() else -len(seen), name)
    return {name: tensors[name] for name in seen.values()}
