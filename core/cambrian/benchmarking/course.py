"""The course of a benchmark: exports, then rounds of child processes, then the table."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from cambrian.benchmarking.figures import Benchmark, Measured, Row, row
from cambrian.benchmarking.subjects import Subject

LONGEST = 2 * 60 * 60  # seconds that a job may take: exporting large models takes many minutes


@dataclass
class Course:
    """A benchmark under way: what was found, what failed and what was left out, by subject."""

    scratch: Path
    device: str
    sizes: Mapping[str, int]
    data: Sequence[str]
    report: Callable[[str], None]
    found: dict[Subject, list[Measured]] = field(default_factory=dict[Subject, list[Measured]])
    failed: dict[str, str] = field(default_factory=dict[str, str])
    left_out: dict[str, str] = field(default_factory=dict[str, str])

    def prepare(self, subjects: Sequence[Subject]) -> None:
        """Export what subjects await, once for all engines that open it."""
        made: dict[tuple[str, str, str], dict[str, Any]] = {}
        for subject in subjects:
            if not subject.exporter:
                self.found[subject] = []
                continue
            key = (subject.target, subject.exporter, subject.precision)
            out = self.scratch / "exports" / str(len(made))
            if key not in made:
                self.report(f"exporting {subject.name}")
                made[key] = {**self.run(subject, out=str(out)), "folder": str(out)}
            result = made[key]
            if "refused" in result:
                self.left_out[subject.name] = result["refused"]
                self.report(f"{subject.name} is left out: {result['refused']}")
                continue
            if "problem" in result:
                self.fail(subject, result["problem"])
            self.found[replace(subject, target=result["folder"])] = []

    def round(self, label: str, first: bool) -> None:
        """Let every subject that has not failed run once."""
        for subject, rounds in self.found.items():
            if subject.name in self.failed:
                continue
            self.report(f"{label}: {subject.name}")
            result = self.run(subject, operators=first)
            if "done" in result:
                rounds.append(msgspec.convert(result["done"], Measured))
            else:
                self.fail(subject, result["problem"])

    def fail(self, subject: Subject, reason: str) -> None:
        """Keep why a subject takes part no more."""
        self.failed[subject.name] = reason
        self.report(f"{subject.name} failed: {reason}")

    def run(self, subject: Subject, out: str = "", operators: bool = False) -> dict[str, Any]:
        """What a child finds of a job; that it died is a problem like others."""
        job = {
            "subject": asdict(subject),
            "device": self.device,
            "sizes": self.sizes,
            "out": out,
            "data": self.data,
            "operators": operators,
        }
        return run_child(json.dumps(job), self.scratch)

    def result(self, rounds: int) -> Benchmark:
        """The table, with the first subject that did not fail as the measure of the others."""
        good = [found for subject, found in self.found.items() if subject.name not in self.failed]
        rows: list[Row] = []
        for subject, found in self.found.items():
            if subject.name in self.failed:
                rows.append(Row(name=subject.name, problem=self.failed[subject.name]))
                continue
            rate = statistics.median(each.rate for each in good[0])
            rows.append(row(subject.name, found, good[0][0], rate))
        return Benchmark(
            unit=good[0][0].unit if good else "",
            streams=bool(good) and good[0][0].pieces > 1,
            sizes=self.sizes,
            rounds=rounds,
            rows=tuple(rows),
            left_out=self.left_out,
        )


def run_child(job: str, scratch: Path) -> dict[str, Any]:
    """Run a job in a process group of its own, none of which outlives this call.

    All temporary files and caches are below `scratch`.
    """
    own = {
        "HF_HUB_OFFLINE": "1",  # what is needed has been fetched
        "TMPDIR": str(scratch),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
        "TRITON_CACHE_DIR": str(scratch / "triton"),
    }
    errors = scratch / "errors"
    with errors.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cambrian.benchmarking.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream,
            env={**os.environ, **own},
            start_new_session=True,  # a Ctrl-C reaches us alone, and we end the group
        )
        try:
            written = answer(process, job)
        except TimeoutError:
            return {"problem": f"it had not ended after {LONGEST / 60:g} minutes"}
        finally:
            end(process)
    with contextlib.suppress(ValueError):
        return json.loads(written)
    return {"problem": died(process.returncode, errors)}


def answer(process: subprocess.Popen[bytes], job: str) -> bytes:
    """Hand a child its job and read what it writes; TimeoutError where that takes too long, and
    the child is dead then. Its standard input stays open meanwhile: the child takes the end of
    that for ours, however we come to it."""
    assert process.stdin is not None and process.stdout is not None
    late = threading.Event()

    def stop() -> None:
        late.set()
        kill(process)

    timer = threading.Timer(LONGEST, stop)
    timer.daemon = True
    timer.start()
    try:
        with contextlib.suppress(BrokenPipeError):  # it is dead already
            process.stdin.write(f"{job}\n".encode())
            process.stdin.flush()
        written = process.stdout.read()
        process.wait()
    finally:
        timer.cancel()
    if late.is_set():
        raise TimeoutError
    return written


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a child and whatever it has started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a child and close what led to it."""
    kill(process)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def died(status: int, errors: Path) -> str:
    """Why a child gave no result, as far as anyone can tell."""
    lines = errors.read_text("utf-8", "replace").strip().splitlines()
    said = f": {lines[-1][:300]}" if lines else ""
    if status == -9:
        return f"its process was killed, as happens when memory runs out{said}"
    how = f"by signal {-status}" if status < 0 else f"with status {status}"
    return f"its process ended {how}{said}"
