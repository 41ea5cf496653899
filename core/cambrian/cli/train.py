"""cambrian train"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Self

import typer

from cambrian.cli.completion import complete_model
from cambrian.errors import CambrianError, UsageError
from cambrian.specs import LOOP


def train(
    name: Annotated[
        str | None,
        typer.Argument(
            help="An architecture or a named model; a folder or hf:// address to fine-tune.",
            autocompletion=complete_model,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write. [default: runs/NAME]")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="Begin with what fits of a checkpoint or a named model.",
            autocompletion=complete_model,
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", help="File, folder, glob, '-' or data set; repeatable."),
    ] = None,
    validation: Annotated[
        list[str] | None, typer.Option(help="Held-out data; otherwise a part is split off.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Settings in a TOML file.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="One setting; repeatable."),
    ] = None,
    trainer: Annotated[str, typer.Option(help="Which trainer.")] = LOOP,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this folder.", metavar="FOLDER")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is in the folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a model, or go on with a run that was stopped.

    Ctrl-C saves and says how to go on.

    \b
    Examples:
      cambrian train gpt-char --data shakespeare.txt -o runs/bard
      cambrian train gpt --data 'corpus/*.jsonl.gz' --set n_layer=6 --set steps=5000
      cambrian train bert-classifier --base bert-base-uncased --data reviews.csv
      cambrian train --resume runs/bard
    """
    prepare_process()
    from cambrian import api
    from cambrian.cli.progress import TrainingProgress

    with TrainingProgress() as progress, Stopper(progress.say) as stopper:
        hooks: dict[str, Any] = {"report": progress.report, "stop": stopper.asked}
        if resume is not None:
            others = (name, out, base, data, validation, config, settings)
            if any(other is not None for other in others) or force:
                raise UsageError(
                    "--resume takes every setting from the run; give no name and no other option."
                )
            result = api.resume(resume, **hooks)
        elif name is None:
            raise UsageError("Say what to train: cambrian train NAME (see `cambrian list`).")
        else:
            result = api.train(
                name,
                out or default_out(name),
                base=base,
                data=data or (),
                validation=validation or (),
                config=config,
                settings=settings or (),
                trainer=trainer,
                force=force,
                **hooks,
            )
    report(result, as_json)
    if not result.complete:
        raise CambrianError(
            f"Stopped at step {result.step}; everything is saved. Go on with: "
            f"cambrian train --resume {result.folder}"
        )


def report(result: Any, as_json: bool) -> None:
    """Print how a run ended."""
    if as_json:
        facts = {
            "folder": str(result.folder),
            "complete": result.complete,
            "step": result.step,
            "metrics": dict(result.metrics),
        }
        print(json.dumps(facts))
        return
    metrics = result.metrics
    players = [
        (key, key.replace("_", " "))
        for key in metrics
        if key.endswith("_loss") and "validation" not in key
    ]
    for key, label in (
        ("loss", "training loss"),
        *players,
        ("best_validation_loss", "best held-out loss"),
        ("best_step", "at step"),
    ):
        if key in metrics:
            value = metrics[key]
            print(f"{label:<20}{value:.4f}" if isinstance(value, float) else f"{label:<20}{value}")
    print(f"{'model':<20}{result.folder}")
    print(f"{'curve':<20}{result.folder / 'train' / 'loss.svg'}")
    if (picture := result.folder / "preview.png").is_file():
        print(f"{'pictures':<20}{picture}")


def prepare_process() -> None:
    """Set the process up for training, before torch is imported."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch: huge pages for large tensors
    from cambrian.allocator import keep_memory

    keep_memory()


def default_out(name: str) -> Path:
    """Below runs/, named like the model."""
    path = Path(name)
    return Path("runs") / (path.resolve() if path.is_dir() else path).name.replace("@", "-")


class Stopper:
    """Turns SIGINT and SIGTERM into a request to save and stop.

    Before the first step there is nothing to save: a signal interrupts, as does a second one.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.training = self.stopping = False

    def asked(self) -> bool:
        """The trainer's question after each step."""
        self.training = True
        return self.stopping

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Receive a signal."""
        if self.stopping or not self.training:
            raise KeyboardInterrupt
        self.stopping = True
        self.say("stopping after this step; once more to stop at once")

    def __enter__(self) -> Self:
        numbers = (signal.SIGINT, signal.SIGTERM)
        self.before = {number: signal.signal(number, self.handle) for number in numbers}
        return self

    def __exit__(self, *reason: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
