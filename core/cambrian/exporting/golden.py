"""Golden vectors: what the model computed when it was exported, for engines to be held to later.

golden.safetensors keeps each case's inputs and, of every output, SAMPLES elements, the largest
element of its last rows, its shape and its magnitude; the index lies in the file's own header.
Nothing here imports torch: an exported folder is verified wherever it runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cambrian.artifact import MANIFEST, Artifact
from cambrian.errors import BrokenFile, CambrianError, Rejected
from cambrian.exporting.parity import (
    BuildPipeline,
    Progress,
    Result,
    compare,
    compare_probes,
    fit_dtypes,
    magnitude,
    receipt,
    tolerance_for,
    verdict,
    worst_of,
)
from cambrian.runtime import Array, Session

if TYPE_CHECKING:
    from cambrian.model import Case
    from cambrian.specs import RuntimeSpec

GOLDEN = "golden.safetensors"
SAMPLES = 1024
INPUT_LIMIT = 100_000  # bytes; larger cases are checked at export only, or verifying takes minutes


@dataclass(frozen=True)
class Output:
    """An output's shape and largest magnitude, to scale the tolerance by."""

    shape: tuple[int, ...]
    largest: float


@dataclass(frozen=True)
class Call:
    """A call of a graph: the names of its inputs and its outputs."""

    graph: str
    inputs: tuple[str, ...]
    outputs: Mapping[str, Output]


@dataclass(frozen=True)
class Index:
    """The cases by name, in order, and the names of the probe's results."""

    cases: Mapping[str, tuple[Call, ...]] = field(default_factory=dict[str, tuple[Call, ...]])
    probe: tuple[str, ...] = ()


class Recorder:
    """Collects golden vectors while the cases run; `observe` is `sweep`'s observer."""

    def __init__(self) -> None:
        self.tensors: dict[str, Array] = {}
        self.cases: dict[str, tuple[Call, ...]] = {}

    def observe(self, case: Case, number: int, outputs: Mapping[str, Array]) -> None:
        """Keep what is needed of one call; `outputs` are the reference's."""
        if sum(value.nbytes for _, inputs in case.calls for value in inputs.values()) > INPUT_LIMIT:
            return
        graph, inputs = case.calls[number]
        for name, value in inputs.items():
            self.tensors[_key(case.name, number, "input", name)] = np.asarray(value, order="C")
        kept: dict[str, Output] = {}
        for name, value in outputs.items():
            kept[name] = Output(value.shape, magnitude(value))
            self.tensors[_key(case.name, number, "sample", name)] = sample(value, case.name, name)
            self.tensors[_key(case.name, number, "largest", name)] = last_choices(value)
        call = Call(graph, tuple(inputs), kept)
        self.cases[case.name] = (*self.cases.get(case.name, ()), call)

    def write(self, file: Path, probe: Mapping[str, Array]) -> None:
        """Write everything, with the reference's answer to the pipeline's probe."""
        tensors = {**self.tensors, **{f"probe/{name}": np.array(x) for name, x in probe.items()}}
        index = msgspec.to_builtins(Index(self.cases, tuple(probe)))
        file.write_bytes(save(tensors, {"index": json.dumps(index)}))


def sample(value: Array, case: str, name: str) -> Array:
    """At most SAMPLES elements of `value`, chosen by Philox from the names."""
    if value.size <= SAMPLES:
        return np.array(value).reshape(-1)
    key = np.frombuffer(hashlib.sha256(f"{case}/{name}".encode()).digest()[:16], np.uint64)
    # The generator's raw words are the same in every version of numpy; its integers() may change.
    chosen = np.random.Philox(key=key).random_raw(SAMPLES) % np.uint64(value.size)
    return value.reshape(-1)[chosen.astype(np.int64)]


def last_choices(value: Array) -> Array:
    """The index of the largest element along the last axis, of the last rows: at (B, S, V) B."""
    if value.ndim == 0 or value.size == 0:
        return np.zeros(0, np.int64)
    return np.asarray(_last_rows(value).argmax(-1).astype(np.int64).reshape(-1)[:SAMPLES])


def _last_rows(value: Array) -> Array:
    rows = value[..., -1, :] if value.ndim >= 3 else value
    return rows.reshape(-1, rows.shape[-1])


def _key(case: str, number: int, kind: str, name: str) -> str:
    return f"{case}/{number}/{kind}/{name}"


def read_golden(file: Path) -> tuple[Index, dict[str, Array]]:
    """Read the index and the tensors; BrokenFile if the file is malformed or incomplete."""
    try:
        with safe_open(file, framework="numpy") as opened:
            index = msgspec.convert(json.loads(opened.metadata()["index"]), Index)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BrokenFile(f"{file} is no file of golden vectors ({error}).") from error
    return index, tensors


def verify_artifact(
    folder: Path,
    runtime: RuntimeSpec,
    device: str = "auto",
    *,
    build: BuildPipeline | None = None,
    progress: Progress = lambda name: None,
) -> dict[str, Any]:
    """Hold an exported folder to its golden vectors on this machine's engine and device.

    `build` makes the pipeline whose probe is repeated. Returns the receipt; BrokenFile where a
    file is not the exported one, Rejected where the files are right but the numbers are not.
    """
    artifact = Artifact.open(folder)
    artifact.check()
    recorded = artifact.manifest.receipt.get("limit")
    if not isinstance(recorded, float | None):
        raise BrokenFile(f"{folder / MANIFEST} has no number as its receipt's limit.")
    limit = tolerance_for(artifact.manifest.precision, recorded)
    index, tensors = read_golden(folder / GOLDEN)
    session = runtime.runtime.load()().open(folder, device)
    replay = _Replay(session, tensors, limit)
    try:
        results: list[Result] = []
        for name, calls in index.cases.items():
            progress(name)
            results.append(replay.run(name, calls))
        probe = None
        if build is not None and not verdict(results, None, artifact.manifest.precision):
            want = {name: tensors[f"probe/{name}"] for name in index.probe}
            probe = compare_probes(want, build(session).probe())
        if problem := verdict(results, probe, artifact.manifest.precision):
            raise Rejected(
                f"{folder} does not compute on {session.provider} what its model computed: "
                f"{problem}. Do not use it on this device; export the model again."
            )
        return {"passed": True} | receipt(results, probe, session, limit)
    except KeyError as error:
        raise BrokenFile(f"{folder / GOLDEN} lacks {error}. Export the model again.") from error
    finally:
        session.close()


@dataclass(frozen=True)
class _Replay:
    """Runs recorded cases on a session and compares."""

    session: Session
    tensors: Mapping[str, Array]
    limit: float

    def run(self, case: str, calls: Sequence[Call]) -> Result:
        found: list[Result] = []
        state = None
        for number, call in enumerate(calls):
            inputs = {name: self.tensors[_key(case, number, "input", name)] for name in call.inputs}
            try:
                fitted = fit_dtypes(inputs, self.session.signatures[call.graph])
                outputs, state = self.session.run(call.graph, fitted, state)
            except CambrianError as error:
                return Result(name=case, problem=str(error))
            for name, expected in call.outputs.items():
                found.append(self.compare(case, number, name, expected, outputs[name]))
        return worst_of(case, found)

    def compare(self, case: str, number: int, name: str, expected: Output, value: Array) -> Result:
        """Compare an output with what is kept of it."""
        stored = self.tensors[_key(case, number, "sample", name)]
        choices = self.tensors[_key(case, number, "largest", name)]
        if value.shape != expected.shape:
            return Result(name=name, problem=f"has shape {value.shape}, not {expected.shape}")
        if value.dtype.kind != "f":
            return compare(name, stored, sample(value, case, name), 0.0)
        if not np.isfinite(value).all():
            return Result(name=name, problem="gives NaN or infinity")
        # The scale is the whole output's; the sample may miss the largest element.
        allowed = self.limit * max(1.0, expected.largest)
        worse = _beyond(value, choices, allowed)
        if worse:
            return Result(name=name, problem=f"the largest element is another in {worse} last rows")
        return compare(
            name, stored, sample(value, case, name), allowed / max(1.0, magnitude(stored))
        )


def _beyond(value: Array, choices: Array, allowed: float) -> int:
    """In how many last rows what was the largest element now falls short by more than allowed."""
    if not choices.size:
        return 0
    rows = _last_rows(value)[: len(choices)].astype(np.float32)
    chosen = np.take_along_axis(rows, choices.astype(np.int64)[:, None], axis=1)[:, 0]
    return int(np.count_nonzero(rows.max(-1) - chosen > allowed))
