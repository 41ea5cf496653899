"""One job of a benchmark, in a process of its own: JSON on standard input and output.

    python -P -m cambrian.benchmarking.child

A job exports a model, or opens a subject and times it. Whatever it fails of is its result.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cambrian.artifact import MANIFEST, Artifact
from cambrian.benchmarking.figures import Measured
from cambrian.benchmarking.subjects import Subject
from cambrian.config import update
from cambrian.errors import CambrianError
from cambrian.pipeline import Pipeline
from cambrian.registry import load_registry
from cambrian.workload import Workload

LEAST_RUNS, LEAST_SECONDS = 3, 0.5  # timed in a round, after one run that warms up


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a child is to do: export `subject` to the folder `out` or, without one, time it.

    data: what the cost of a coarse precision is measured on. operators: whether to count them, too.
    """

    subject: Subject
    device: str
    sizes: Mapping[str, int]
    out: str = ""
    data: tuple[str, ...] = ()
    operators: bool = False


def main() -> None:
    """Do the job on standard input. The result is {"done": ...}, {"refused": why} or
    {"problem": why}; what libraries print goes to standard error."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
        threading.Thread(target=end_with_parent, daemon=True).start()
        found = make(job) if job.out else {"done": asdict(measure(job))}
    except CambrianError as error:
        found = {"problem": str(error)}
    except Exception as error:  # whatever an engine may raise
        reason = textwrap.shorten(str(error), 300, placeholder=" ...")
        found = {"problem": f"{type(error).__name__}: {reason}"}
    with results:
        json.dump(found, results)


def end_with_parent() -> None:
    """Wait for the end of standard input, which is the parent's, and end with all that we began."""
    while os.read(0, 1):
        pass
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def make(job: Job) -> dict[str, Any]:
    """Export, unless the exporter refuses to."""
    from cambrian import api

    subject, registry = job.subject, load_registry()
    exporter = registry.pick("exporter", subject.exporter).exporter.load()()
    model = api.open_checkpoint(subject.target, registry).model()
    if reason := exporter.refuses(model, subject.precision):
        return {"refused": reason}
    api.export(
        subject.target,
        job.out,
        format=subject.exporter,
        precision=subject.precision,
        device=job.device,
        data=job.data if subject.precision in exporter.rounding else (),
    )
    return {"done": {}}


def measure(job: Job) -> Measured:
    """Open the subject and time its work; CambrianError where its task has none."""
    before = gpu_memory()
    start = time.perf_counter()
    pipeline, folder = opened(job.subject, job.device)
    load = time.perf_counter() - start
    kind = type(pipeline)
    work = pipeline.workload(update(kind.default_sizes(pipeline.config), job.sizes, "sizes"))
    if work is None:
        raise CambrianError(f"{kind.__name__} declares no work that could be timed.")
    pieces = [*work.run()]
    first, rate = timed(work, len(pieces))
    memory, gpu = peak_memory(), gpu_memory()
    operators, note = counted(pipeline) if job.operators else ({}, "")
    return Measured(
        unit=work.unit,
        pieces=len(pieces),
        first=first,
        rate=rate,
        load=load,
        memory=memory,
        gpu=None if gpu is None or before is None else max(0.0, gpu - before),
        disk=size_of(folder),
        provider=pipeline.session.provider,
        settings=pipeline.session.settings,
        answer=answer(pieces),
        exact=pieces[0].dtype == np.int64,
        operators=operators,
        note=note,
    )


def opened(subject: Subject, device: str) -> tuple[Pipeline, Path]:
    """The subject's pipeline and its folder."""
    from cambrian.loading import folder_for, load, make_pipeline, open_checkpoint

    registry = load_registry()
    folder = folder_for(registry.resolve(subject.target), registry, subject.target)
    if not subject.form:
        return load(subject.target, device=device, runtime=subject.runtime), folder
    from cambrian.runtime.torch import TorchSession

    checkpoint = open_checkpoint(subject.target, registry)
    model = checkpoint.model()
    if subject.form == "bfloat16":
        import torch

        from cambrian.training.worker import reduced_copy

        model = reduced_copy(model, torch.bfloat16)
    session = TorchSession(model, device, compiled=subject.form == "compiled")
    processor = checkpoint.processor()
    return make_pipeline(checkpoint.spec, checkpoint.config, folder, processor, session), folder


def timed(work: Workload, pieces: int) -> tuple[float, float]:
    """Medians of the seconds to the first piece and of the units a second."""
    firsts: list[float] = []
    rates: list[float] = []
    begun = time.perf_counter()
    while len(firsts) < LEAST_RUNS or time.perf_counter() - begun < LEAST_SECONDS:
        start = time.perf_counter()
        run = work.run()
        next(run)
        first = time.perf_counter() - start
        for _ in run:
            pass
        rest = time.perf_counter() - start - first
        firsts.append(first)
        rates.append(work.count * (pieces - 1) / rest if pieces > 1 else work.count / first)
    return statistics.median(firsts), statistics.median(rates)


def answer(pieces: list[Any]) -> list[float]:
    """What was computed, to be compared: all names, but only a sample of quantities."""
    from cambrian.exporting.golden import sample

    if pieces[0].dtype == np.int64:
        return [*itertools.chain.from_iterable(piece.reshape(-1).tolist() for piece in pieces)]
    return [
        float(value)
        for number, piece in enumerate(pieces)
        for value in sample(piece, "bench", str(number))
    ]


def counted(pipeline: Pipeline) -> tuple[Mapping[str, int], str]:
    """The engine's operators or, in a note, why it cannot tell: no reason to lose the figures."""
    try:
        return dict(pipeline.session.operators()), ""
    except Exception as error:
        return {}, textwrap.shorten(f"operators not counted: {error}", 300, placeholder=" ...")


def size_of(folder: Path) -> float:
    """MiB of what an engine opens: an export's files but for the proof, a checkpoint's weights."""
    if (folder / MANIFEST).is_file():
        from cambrian.exporting.golden import GOLDEN

        files = [folder / name for name in Artifact.open(folder).manifest.files if name != GOLDEN]
    else:
        from cambrian.checkpoint import Checkpoint, shards

        spec = Checkpoint.open(folder, load_registry().models.values()).spec
        files = [shard.source for shard in shards(folder, spec.weights_file)]
    return sum(file.stat().st_size for file in files) / 2**20


def peak_memory() -> float | None:
    """MiB that this process had at most.

    Linux's own figure comes first: getrusage also counts what the parent had when it started us.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    if sys.platform == "win32":
        return None
    import resource

    unit = 2**20 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def gpu_memory() -> float | None:
    """MiB of all GPUs' memory that is in use now; None where nvidia-smi does not say."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        return float(sum(map(int, done.stdout.split())))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


if __name__ == "__main__":
    main()
