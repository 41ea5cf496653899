"""Progress of long work, on standard error: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from cambrian.cli import text
from cambrian.errors import listed

QUIET_SECONDS = 5.0  # between two lines where there is no terminal


class Display:
    """A bar on a terminal, and lines on standard error that stay; on a terminal above the bar."""

    console: Console
    bar: Progress

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def say(self, line: str) -> None:
        """A line that stays."""
        if self.console.is_terminal:
            self.bar.print(text.visible(line), markup=False)
        else:
            say(line)


class TrainingProgress(Display):
    """Shows a run's events: step, loss, throughput, time left; a line for each evaluation."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.bar = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.description}", markup=False),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("preparing", total=0)
        self.said = 0.0

    def report(self, event: Mapping[str, Any]) -> None:
        """Show an event of the run, or of the fetching of its base."""
        if "notice" in event:
            self.say(event["notice"])
            return
        if "file" in event:
            self.fetching(event)
            return
        if "base" in event:
            fresh = listed(event["fresh"]) or "nothing"
            left = f"; left out: {listed(event['left'])}" if event["left"] else ""
            self.say(f"kept {event['kept']} tensors of {event['base']}; fresh: {fresh}{left}")
            return
        total = event["steps"]
        if event.get("resumed"):
            note = f" ({event['note']})" if "note" in event else ""
            self.say(f"going on from step {event['step']}{note}")
        if "best" in event:
            mark = " (best so far)" if event["best"] else ""
            self.say(f"step {event['step']}: {held_out(event)}{mark}")
        if not training_losses(event):
            return
        line = describe(event)
        self.bar.update(self.task, completed=event["step"], total=total, description=line)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.said >= QUIET_SECONDS:
            self.said = now
            self.say(f"step {event['step']}/{total}: {line}")

    def fetching(self, event: Mapping[str, Any]) -> None:
        """A file of the base that is on its way."""
        done, total = event["done"], event["total"]
        line = text.visible(f"fetching {event['file']}")
        self.bar.update(self.task, completed=done, total=total, description=line)
        if not self.console.is_terminal and time.monotonic() - self.said >= QUIET_SECONDS:
            self.said = time.monotonic()
            self.say(f"{line}: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB")


def training_losses(event: Mapping[str, Any]) -> dict[str, float]:
    """The loss of a step or, where several updates have one each, all of them by name."""
    return {
        name: value
        for name, value in event.items()
        if name == "loss" or (name.endswith("_loss") and not name.startswith("validation_"))
    }


def held_out(event: Mapping[str, Any]) -> str:
    """The held-out loss; without one, the first three figures that were measured."""
    if "validation_loss" in event:
        return f"held-out loss {event['validation_loss']:.4f}"
    found = [
        f"{name.removeprefix('validation_').replace('_', ' ')} {value:.4g}"
        for name, value in event.items()
        if name.startswith("validation_")
    ]
    return ", ".join(found[:3])


def describe(event: Mapping[str, Any]) -> str:
    """The figures of one step."""
    parts = [f"{name.replace('_', ' ')} {x:.4f}" for name, x in training_losses(event).items()]
    parts += [
        f"{value:,.0f} {name.removesuffix('_per_second')}/s"
        for name, value in event.items()
        if name.endswith("_per_second")
    ]
    if "mfu" in event:
        parts.append(f"MFU {event['mfu']:.0%}")
    return "  ".join(parts)


def say(line: str) -> None:
    """A line about the work, on standard error."""
    print(text.visible(line), file=sys.stderr, flush=True)


class Counted(Display):
    """Shows how far counted work is, once there is some, in the place of another display."""

    def __init__(self, before: Display) -> None:
        self.before = before
        self.console = before.console
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.task: TaskID | None = None
        self.said = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def report(self, what: str, done: int, total: int) -> None:
        """Show that so many of `total` are done, of what there may be several kinds in turn."""
        what = text.visible(what)
        if self.task is None:
            self.before.bar.stop()
            self.bar.start()
            self.task = self.bar.add_task(what, total=total)
        if done == 0:  # of work of its own, even if it is called as the last was
            self.bar.reset(self.task)
        self.bar.update(self.task, description=what, completed=done, total=total)
        if not self.console.is_terminal and time.monotonic() - self.said >= QUIET_SECONDS:
            self.said = time.monotonic()
            self.say(f"{what}: {done} of {total}")


class Downloads(Display):
    """Shows what comes from the Hub (or what else is done to files), all of them together, and what
    is worth knowing of it."""

    def __init__(self, doing: str = "fetching") -> None:
        self.doing = doing
        self.console = Console(stderr=True, highlight=False)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.files: dict[str, tuple[int, int]] = {}
        self.task: TaskID | None = None
        self.said = time.monotonic()
        self.lock = threading.Lock()

    def report(self, event: Mapping[str, Any]) -> None:
        """Show {"file", "done", "total"} in bytes, or {"notice"}; called from several threads."""
        with self.lock:
            if "notice" in event:
                self.say(event["notice"])
                return
            self.files[event["file"]] = (event["done"], event["total"])
            done, total = map(sum, zip(*self.files.values(), strict=True))
            if self.console.is_terminal:
                if self.task is None:
                    self.task = self.bar.add_task(self.doing, total=total)
                self.bar.update(self.task, completed=done, total=total)
            elif time.monotonic() - self.said >= QUIET_SECONDS:
                self.said = time.monotonic()
                self.say(f"{self.doing}: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB")
