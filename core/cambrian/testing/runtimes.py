"""What every engine must keep. A check opens the small models of registered architectures, in the
formats that the engine says it opens, and raises AssertionError, with a sentence, where something
is not kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cambrian.artifact import MANIFEST, Artifact
from cambrian.errors import CambrianError
from cambrian.files import sha256
from cambrian.registry import load_registry
from cambrian.runtime import Array, Session, State
from cambrian.specs import RuntimeSpec
from cambrian.testing.commands import run
from cambrian.testing.exported import CHECKPOINT, example_folder, example_model, new_model

if TYPE_CHECKING:
    from cambrian.model import Case

RuntimeCheck = Callable[[RuntimeSpec, Path], None]
CLOSE = 1e-4  # of the largest magnitude: what float32 may differ by from batch to batch

IMPORTS = """
import sys
from pathlib import Path
from cambrian import load_registry
kind = load_registry().runtimes[sys.argv[1]].runtime.load()
before = "torch" in sys.modules
kind().open(Path(sys.argv[2]), "cpu").close()
print("torch" if before else "torch, on opening" if "torch" in sys.modules else "none")
"""


def check_interface(spec: RuntimeSpec, folder: Path) -> None:
    """The Ref leads to a Runtime that needs nothing to be made; each of its formats is one that
    checkpoints have or an installed exporter writes."""
    from cambrian.runtime import Runtime

    kind: Any = spec.runtime.load()
    assert isinstance(kind, type) and issubclass(kind, Runtime), (
        f"runtime names {kind!r}, which is no subclass of cambrian.Runtime"
    )
    missing = sorted(getattr(kind, "__abstractmethods__", ()))
    assert not missing, f"{kind.__name__} lacks {', '.join(missing)}"
    assert spec.summary and spec.formats, "summary or formats is empty"
    written = {each.format for each in load_registry().exporters.values()} | {CHECKPOINT}
    unknown = {*spec.formats} - written
    assert not unknown, f"no installed exporter writes {min(unknown)}, so it cannot be checked"
    empty = {*spec.formats} - {kind for kind, _ in chosen(spec)}
    assert not empty, f"no registered model can be had in {min(empty)}, so it cannot be checked"


def check_every_format_computes(spec: RuntimeSpec, folder: Path) -> None:
    """Every registered architecture, in every format: each case gives what torch gives."""
    from cambrian.exporting.parity import receipt, sweep, tolerance_for, verdict
    from cambrian.runtime.torch import TorchSession

    for kind in spec.formats:
        for name in load_registry().models:
            where = example_folder(name, kind)
            if where is None:
                continue
            session, limit = opened(spec, where), tolerance_for("float32")
            model = example_model(name)
            cases = [*model.cases()]
            found = sweep(
                cases, TorchSession(model), session, limit,
                observe=unobserved, progress=unsaid,
            )  # fmt: skip
            problem = verdict(found, None, "float32")
            assert not problem, f"{name} in {kind}: {problem}"
            assert json.dumps(receipt(found, None, session, limit)), "no receipt can be written"
            session.close()


def unobserved(*_: object) -> None:
    """A sweep tells of every call."""


def unsaid(what: str) -> None:
    """A sweep tells of its progress."""


def check_it_says_what_computes(spec: RuntimeSpec, folder: Path) -> None:
    """A session names its provider in one line, its settings are words and numbers, it counts
    operators or none, and it may be closed twice."""
    for kind, name in chosen(spec):
        session = opened(spec, folder_of(name, kind))
        assert session.provider.strip() == session.provider != "", "provider is empty"
        assert session.provider.isprintable(), f"provider {session.provider!r} is no line"
        for key, value in session.settings.items():
            assert isinstance(value, str | int), f"setting {key} is {value!r}: no word, no number"
        for key, number in session.operators().items():
            known: object = key
            assert isinstance(known, str) and number > 0, (
                f"operator {key!r} is there {number} times"
            )
        graphs = {graph.name for graph in example_model(name).graphs()}
        assert session.signatures.keys() == graphs, (
            f"signatures are of {sorted(session.signatures)}"
        )
        session.close()
        session.close()


def check_other_devices_are_refused(spec: RuntimeSpec, folder: Path) -> None:
    """A device that there is not is refused in a line that names it."""
    for kind, name in chosen(spec):
        said = refused(spec.runtime.load()().open, folder_of(name, kind), "abacus")
        assert said, f"device 'abacus' is taken, in {kind}"
        assert "abacus" in said, f"a device 'abacus' is refused without its name: {said}"


def check_damage_is_noticed(spec: RuntimeSpec, folder: Path) -> None:
    """A folder with nothing in it, one that lacks a file, one in which a file was changed, and one
    whose graph was cut off though its manifest agrees, are refused in a line each."""
    engine = spec.runtime.load()()
    (folder / "empty").mkdir()
    assert refused(engine.open, folder / "empty", "cpu"), "an empty folder is opened"
    for kind, name in chosen(spec):
        if kind == CHECKPOINT:
            continue  # a checkpoint has no hashes
        where = folder / f"{name}.{kind}"
        for what, file in damaged(folder_of(name, kind), where):
            assert refused(engine.open, where, "cpu"), f"{file} {what}, and it is opened"


def damaged(good: Path, bad: Path) -> Iterator[tuple[str, str]]:
    """Make `bad` of `good` in one way after another: what was done to which file."""
    manifest = Artifact.open(good).manifest
    graphs = {graph.file for graph in manifest.graphs.values()}
    for file in manifest.files:
        shutil.copytree(good, bad, dirs_exist_ok=True)
        data = bytearray((bad / file).read_bytes())
        data[len(data) // 2] ^= 1
        (bad / file).write_bytes(data)
        yield "has one other bit", file
        (bad / file).unlink()
        yield "is missing", file
        if file in graphs:
            (bad / file).write_bytes(data[: len(data) // 2])
            files = {**manifest.files, file: sha256(bad / file)}
            replace(manifest, files=files).write(bad / MANIFEST)
            yield "ends half-way", file


def check_wrong_calls_are_refused(spec: RuntimeSpec, folder: Path) -> None:
    """A graph or an input that there is not, one that is missing, of another type or of another
    number of dimensions: a line each, and the session goes on as before."""
    for kind, name in chosen(spec):
        session = opened(spec, folder_of(name, kind))
        graph, inputs = cached_case(name).calls[0]
        first = next(iter(inputs))
        wrong: Mapping[str, tuple[str, Mapping[str, Array]]] = {
            "a graph that there is not": (f"{graph}x", inputs),
            "an input that there is not": (graph, {**inputs, f"{first}x": inputs[first]}),
            "no inputs": (graph, {}),
            "an input of another type": (graph, {**inputs, first: inputs[first].astype(np.int16)}),
            "an input with a dimension more": (graph, {**inputs, first: inputs[first][None]}),
        }
        before, _ = session.run(graph, inputs)
        for what, (which, given) in wrong.items():
            assert refused(session.run, which, given), f"{kind}: {what} is taken"
        after, _ = session.run(graph, inputs)
        same(before, after, f"{kind}: refusing a call changes what the next one gives")


def check_results_are_the_callers(spec: RuntimeSpec, folder: Path) -> None:
    """Inputs are only read, whatever their layout; and what a call gave, a later call leaves as it
    was. The same call gives the same bits."""
    for kind, name in chosen(spec):
        session = opened(spec, folder_of(name, kind))
        graph, inputs = cached_case(name).calls[0]
        outputs, _ = session.run(graph, inputs)
        kept = {key: value.copy() for key, value in outputs.items()}
        other = {key: np.asfortranarray(value[::-1]) for key, value in inputs.items()}
        frozen = {key: value.copy() for key, value in other.items()}
        for value in other.values():
            value.setflags(write=False)
        session.run(graph, other)
        same(outputs, kept, f"{kind}: a call's outputs change with the next call")
        same(other, frozen, f"{kind}: a call changes its inputs")
        same(session.run(graph, inputs)[0], kept, f"{kind}: the same call gives other bits")


def check_state_may_be_branched(spec: RuntimeSpec, folder: Path) -> None:
    """One state may be gone on from several times, each as if it were the only one; it is no
    output, and holds what calls did not renew."""
    for kind, name in stateful(spec):
        session = opened(spec, folder_of(name, kind))
        *before, (graph, inputs) = cached_case(name).calls
        state = after(session, before)
        first, further = session.run(graph, inputs, state)
        other = {key: value[::-1].copy() for key, value in inputs.items()}
        try:
            session.run(graph, other, state)
            again, _ = session.run(graph, inputs, state)
        except CambrianError as error:
            raise AssertionError(
                f"{kind}: a state cannot be gone on from twice: {error}"
            ) from error
        same(first, again, f"{name} in {kind}: a state gone on from twice gives other results")
        assert state.keys() <= further.keys(), f"{kind}: a call drops state that it does not renew"
        fed = set(session.signatures[graph].state)
        assert not fed & first.keys(), f"{kind}: state is among the outputs"


def check_rows_may_be_taken(spec: RuntimeSpec, folder: Path) -> None:
    """`take` gives a state of other rows, in any order and number, and leaves the old one; rows
    that there are not are refused."""
    for kind, name in stateful(spec):
        session = opened(spec, folder_of(name, kind))
        *before, (graph, inputs) = cached_case(name).calls
        rows = np.array([1, 0, 1, 1])
        state = after(session, before)
        whole, _ = session.run(graph, inputs, state)
        taken = session.take(state, rows)
        some = {key: value[rows] for key, value in inputs.items()}
        found, _ = session.run(graph, some, taken)
        for key, value in found.items():
            near(value, whole[key][rows], f"{name} in {kind}: taken rows give another {key}")
        again, _ = session.run(graph, inputs, state)
        same(whole, again, f"{name} in {kind}: taking rows changes the state that they were of")
        for wrong in (np.array([0, 99]), np.array([-1]), np.array([0.0])):
            assert refused(session.take, state, wrong), f"rows {wrong} are taken"


def check_torch_is_not_needed(spec: RuntimeSpec, folder: Path) -> None:
    """An engine whose module does without torch does without it when it opens a folder, too."""
    for kind, name in chosen(spec):
        if kind == CHECKPOINT:
            continue  # a model is torch's
        done = run(folder, "-c", IMPORTS, spec.name, str(folder_of(name, kind)))
        assert done.returncode == 0, " ".join(done.stderr.split())[-500:]
        said = done.stdout.splitlines()[-1]
        assert said != "torch, on opening", (
            f"opening {kind} imports torch, which its module does not"
        )


def chosen(spec: RuntimeSpec) -> Iterator[tuple[str, str]]:
    """Each of its formats with the first architecture that there is in it."""
    for kind in spec.formats:
        name = next((n for n in load_registry().models if example_folder(n, kind)), None)
        if name is not None:
            yield kind, name


def stateful(spec: RuntimeSpec) -> Iterator[tuple[str, str]]:
    """Each of its formats with every architecture that hands on state."""
    for kind in spec.formats:
        for name in load_registry().models:
            handed_on = any(graph.signature.state for graph in new_model(name).graphs())
            if handed_on and example_folder(name, kind):
                yield kind, name


@cache
def cached_case(name: str) -> Case:
    """A case of an architecture with at least two rows and, where it has state, several calls."""
    cases = [c for c in example_model(name).cases() if rows_of(c) > 1]
    assert cases, f"{name} has no case of several rows"
    return max(cases, key=lambda case: (len(case.calls), -rows_of(case)))


def rows_of(case: Case) -> int:
    """The size of a case's batch."""
    return min(len(value) for _, inputs in case.calls for value in inputs.values())


def folder_of(name: str, kind: str) -> Path:
    """A small model in a format, of which `chosen` says that there is one."""
    found = example_folder(name, kind)
    assert found is not None
    return found


def opened(spec: RuntimeSpec, folder: Path) -> Session:
    """A session on the CPU."""
    return spec.runtime.load()().open(folder, "cpu")


def after(session: Session, calls: list[Any]) -> State:
    """The state that calls leave."""
    state: State = {}
    for graph, inputs in calls:
        _, state = session.run(graph, inputs, state)
    return state


def refused(act: Callable[..., Any], *arguments: Any) -> str:
    """The line that a call is refused with; "" if it is not. AssertionError for another error."""
    try:
        act(*arguments)
    except CambrianError as error:
        assert len(str(error).splitlines()) == 1, f"no line: {str(error)!r}"
        return str(error)
    except Exception as error:
        raise AssertionError(
            f"{type(error).__name__} instead of a CambrianError: {error}"
        ) from error
    return ""


def same(one: Mapping[str, Array], other: Mapping[str, Array], otherwise: str) -> None:
    """AssertionError unless all bits are equal."""
    for key, value in one.items():
        equal = value.tobytes() == other[key].tobytes()  # see `models.differing`
        assert equal, f"{otherwise} ({key})"


def near(found: Array, wanted: Array, otherwise: str) -> None:
    """AssertionError unless two arrays of real numbers are about equal."""
    allowed = CLOSE * max(1.0, float(np.abs(wanted).max()))
    assert found.shape == wanted.shape, f"{otherwise}: shape {found.shape}, not {wanted.shape}"
    worst = float(np.abs(np.subtract(found, wanted, dtype=np.float64)).max())
    assert worst <= allowed, f"{otherwise}: off by {worst:.3g}, where {allowed:.3g} is allowed"


RUNTIME_CHECKS: tuple[RuntimeCheck, ...] = (
    check_interface,
    check_every_format_computes,
    check_it_says_what_computes,
    check_other_devices_are_refused,
    check_damage_is_noticed,
    check_wrong_calls_are_refused,
    check_results_are_the_callers,
    check_state_may_be_branched,
    check_rows_may_be_taken,
    check_torch_is_not_needed,
)
