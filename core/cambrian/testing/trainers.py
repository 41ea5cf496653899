"""What every registered trainer must keep. A check fine-tunes a small model that the built-in
trainer made, since a trainer may refuse to begin with nothing; it raises AssertionError, with a
sentence, where something is not kept."""

from __future__ import annotations

import dataclasses
import os
import signal
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cambrian.checkpoint import Checkpoint
from cambrian.config import Changes, apply, as_changes
from cambrian.errors import UsageError
from cambrian.files import PARTIAL
from cambrian.specs import TrainerSpec
from cambrian.testing.commands import cambrian
from cambrian.testing.examples import CPU, pickled, prepared, shelf, trained_example
from cambrian.testing.models import differing, no_default

if TYPE_CHECKING:
    from cambrian.runs import Trained

TrainerCheck = Callable[[TrainerSpec, Path], None]
# Few steps at a rate that suits a small model, with what the loop offers: an average, several
# batches a step. A trainer's own preferences are weaker.
TRAIN = {
    **CPU,
    "steps": 40,
    "batch_size": 4,
    "accumulate": 2,
    "ema": 0.9,
    "evaluate_every": 20,
    "evaluate_batches": 2,
    "checkpoint_every": 20,
    "log_every": 1,
}
SETTINGS: Changes = {"train": TRAIN, "optimizer": {"lr": 5e-3, "warmup_steps": 2}}


def check_interface(spec: TrainerSpec, folder: Path) -> None:
    """The Ref leads to a Trainer; its settings are a frozen dataclass with a default for every
    field, refuse a key that they do not have, and survive the file that a run is resumed by; its
    preferences fit every architecture."""
    import tomli_w

    from cambrian.registry import load_registry
    from cambrian.toml import parse_toml
    from cambrian.training import Trainer

    found: Any = spec.trainer.load()
    assert isinstance(found, type) and issubclass(found, Trainer), (
        f"trainer names {found!r}, which is no subclass of cambrian.Trainer"
    )
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    assert not missing, f"{found.__name__} lacks {', '.join(missing)}"
    assert spec.summary, "summary is empty"
    if spec.config is not None:
        parameters = getattr(spec.config, "__dataclass_params__", None)
        assert parameters and parameters.frozen, f"{spec.config.__name__} is no frozen dataclass"
        needed = [f.name for f in dataclasses.fields(spec.config) if no_default(f)]
        assert not needed, f"{spec.config.__name__} has no default for {', '.join(needed)}"
    for model in load_registry().models.values():
        config, recipe = spec.settings(model.config(), model.fine_tuning or model.recipe)
        text = tomli_w.dumps(as_changes(config, recipe))
        again = apply(config, recipe, parse_toml(text), "recipe.toml")
        assert again == (config, recipe), f"its settings for {model.name} come back as {again}"


@cache
def base_for(trainer: str) -> Path:
    """A small model that the built-in trainer made, of the first architecture that this one does
    not refuse."""
    from cambrian import api
    from cambrian.registry import load_registry

    reasons: list[str] = []
    for name in load_registry().models:
        base = trained_example(name).folder
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch, "out")
            try:
                api.train(base, out, trainer=trainer, settings=SETTINGS, stop=lambda: True)
            except UsageError as error:
                reasons.append(f"{name}: {error}")
                continue
        return base
    raise AssertionError(f"it refuses every architecture; {reasons[0]}")


def tuned(
    trainer: str,
    out: Path,
    settings: Changes = SETTINGS,
    report: Callable[[Mapping[str, Any]], None] = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """The small model, trained further."""
    from cambrian import api

    return api.train(
        base_for(trainer), out, trainer=trainer, settings=settings, report=report, stop=stop
    )


@cache
def tuned_example(trainer: str) -> Trained:
    """The same, made once a process and shared by the checks that only read it."""
    return tuned(trainer, Path(tempfile.mkdtemp(dir=shelf()), trainer))


def check_it_lowers_the_loss(spec: TrainerSpec, folder: Path) -> None:
    """What it leaves is better, by the held-out loss, than what it began with."""
    result = tuned_example(spec.name)
    assert result.complete and result.step == TRAIN["steps"], f"it ended at step {result.step}"
    before, after = (held_out_loss(path) for path in (base_for(spec.name), result.folder))
    assert after < before, f"the held-out loss went from {before:.4f} to {after:.4f}"


def held_out_loss(folder: Path) -> float:
    """A checkpoint's loss on what the small model of its architecture holds out."""
    import torch

    from cambrian.registry import load_registry
    from cambrian.training.loop import mean_metrics, to_device

    checkpoint = Checkpoint.open(folder, load_registry().models.values())
    held_out = prepared(checkpoint.spec)[0].validation
    assert held_out is not None, f"the example of {checkpoint.spec.name} holds nothing out"
    batches = (held_out.batch(number) for number in range(len(held_out)))
    cpu = torch.device("cpu")
    return mean_metrics(checkpoint.model(), (to_device(batch, cpu) for batch in batches))["loss"]


def check_it_leaves_an_ordinary_checkpoint(spec: TrainerSpec, folder: Path) -> None:
    """What it leaves opens as the architecture it was, has the tensors that it had, by name and
    shape, and other numbers, all finite; it consists of plain files."""
    import torch

    from cambrian.registry import load_registry

    before = Checkpoint.open(base_for(spec.name), load_registry().models.values())
    after = tuned_example(spec.name).checkpoint
    assert after is not None, "it published nothing"
    assert after.spec is before.spec and after.config == before.config, "config.json is another"
    old, new = before.model().state_dict(), after.model().state_dict()
    broken = [name for name, value in new.items() if not value.isfinite().all()]
    assert not broken, f"{broken[0]} holds what is no number"
    assert any(not torch.equal(new[name], value) for name, value in old.items()), "nothing moved"
    strange = pickled(after.path)
    assert not strange, f"{strange[0]} is no plain file"


def check_interrupted_it_saves_and_resumes_exactly(spec: TrainerSpec, folder: Path) -> None:
    """Ctrl-C ends the run after that step with everything saved; resumed, it ends with the bytes
    of one that was never stopped."""
    from cambrian import api

    whole, at = tuned_example(spec.name), 7
    half = interrupted(spec.name, folder / "half", at)
    assert not half.complete and half.step in (at, at + 1), (
        f"interrupted in step {at}, it ended at step {half.step}, {half.complete=}"
    )
    again = api.resume(folder / "half")
    assert again.complete and again.step == whole.step, f"resumed, it ended at step {again.step}"
    left = [path.name for path in folder.rglob(f"*{PARTIAL}*")]
    assert not left, f"{left[0]} was left half-written"
    differing(whole.folder, folder / "half")


def interrupted(trainer: str, out: Path, step: int) -> Trained:
    """A run that is sent SIGINT when it reports a step."""
    from cambrian.cli.train import Stopper

    def report(event: Mapping[str, Any]) -> None:
        if event.get("step") == step and not stopper.stopping:
            os.kill(os.getpid(), signal.SIGINT)

    with Stopper(lambda line: None) as stopper:
        try:
            result = tuned(trainer, out, report=report, stop=stopper.asked)
        except KeyboardInterrupt:
            raise AssertionError("it never asks its job whether to stop") from None
    assert stopper.stopping, f"it does not report step {step}, though log_every is 1"
    return result


def check_it_refuses_before_it_writes(spec: TrainerSpec, folder: Path) -> None:
    """A run of no steps, and a setting that there is none of, are UsageErrors, and nothing has
    been written by then."""
    for settings in ({"train": {**TRAIN, "steps": 0}}, {"trainer": {"no_such_key": 1}}):
        try:
            tuned(spec.name, folder / "out", settings=settings)
        except UsageError:
            assert not any(folder.iterdir()), f"it wrote before it refused {settings}"
        else:
            raise AssertionError(f"it does not refuse {settings}")


def check_it_writes_in_its_folder_alone(spec: TrainerSpec, folder: Path) -> None:
    """A run from the command line, in a folder of its own, writes below --out and in Cambrian's
    cache, and leaves the checkpoint that it began with as it was."""
    base = base_for(spec.name)
    before = contents(base)
    words = [f"--set={key}={value}" for key, value in {**TRAIN, "steps": 3}.items()]
    cambrian(folder, "train", str(base), "--trainer", spec.name, "--out", "out", *words)
    changed = {name for name, seen in contents(base).items() if before.get(name) != seen}
    assert not changed, f"it changed {min(changed)} of the checkpoint that it began with"
    strange = sorted(path.name for path in folder.iterdir() if path.name not in ("out", "home"))
    assert not strange, f"it wrote {strange[0]} outside of its folder"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its name in it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def check_it_leaves_the_process_as_it_was(spec: TrainerSpec, folder: Path) -> None:
    """torch's switches, and what signals do, are after a run what they were before."""
    import torch

    torch.use_deterministic_algorithms(False)  # as it is in a fresh process, whatever came before
    torch.set_float32_matmul_precision("highest")
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    before = switches()
    tuned(spec.name, folder / "out")
    changed = [name for name, value in switches().items() if before[name] != value]
    assert not changed, f"it leaves {changed[0]} other than it was"


def switches() -> dict[str, Any]:
    """What a trainer could leave changed for whatever runs after it."""
    import torch

    return {
        "torch's default dtype": torch.get_default_dtype(),
        "torch's number of threads": torch.get_num_threads(),
        "torch's deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch's float32 matmul precision": torch.get_float32_matmul_precision(),
        "whether gradients are taken": torch.is_grad_enabled(),
        "the handler of Ctrl-C": signal.getsignal(signal.SIGINT),
        "the current folder": Path.cwd(),
    }


TRAINER_CHECKS: tuple[TrainerCheck, ...] = (
    check_interface,
    check_it_lowers_the_loss,
    check_it_leaves_an_ordinary_checkpoint,
    check_interrupted_it_saves_and_resumes_exactly,
    check_it_refuses_before_it_writes,
    check_it_writes_in_its_folder_alone,
    check_it_leaves_the_process_as_it_was,
)
