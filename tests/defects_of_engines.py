"""Engines with one defect each, made from ONNX Runtime's: what the conformance kit must catch. No
torch here, for one of them is caught by importing it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cambrian import Artifact, Ref, RuntimeSpec, Session, hookimpl
from cambrian.runtime import Array, State
from cambrian_onnx.runtime import OnnxRuntime, OnnxSession
from defect import Defect

DEFECTS: dict[str, Defect] = {}
GOOD = RuntimeSpec(
    name="good", summary="ONNX Runtime", formats=("onnx",),
    runtime=Ref("defects_of_engines:GoodEngine"),
)  # fmt: skip


def engine(what: str, check: str, says: str) -> Any:
    """Note a defective session, for an engine that opens it."""

    def note(thing: Any) -> Any:
        name = thing.__name__.lower()
        kind = thing
        if issubclass(thing, Wrapped):
            kind = type(f"{thing.__name__}Engine", (GoodEngine,), {"session": thing})
            globals()[kind.__name__] = kind
        changes = {"runtime": Ref(f"defects_of_engines:{kind.__name__}")}
        DEFECTS[name] = Defect(name, what, check, says, changes)
        return thing

    return note


@hookimpl
def register_runtimes() -> Iterable[RuntimeSpec]:
    yield GOOD
    for each in DEFECTS.values():
        yield replace(GOOD, name=each.name, **each.changes)


DEFECTS["unwritten"] = Defect(
    "unwritten", "a format that no exporter writes", "interface",
    "no installed exporter writes scroll", {"formats": ("onnx", "scroll")},
)  # fmt: skip


class Wrapped(Session):
    """A session that hands everything on to another one."""

    def __init__(self, inner: Session) -> None:
        self.inner = inner
        self.provider, self.signatures = inner.provider, inner.signatures
        self.settings = inner.settings

    def run(
        self, graph: str, inputs: Mapping[str, Array], state: State | None = None
    ) -> tuple[dict[str, Array], State]:
        return self.inner.run(graph, inputs, state)

    def take(self, state: State, rows: Array) -> State:
        return self.inner.take(state, rows)

    def operators(self) -> Mapping[str, int]:
        return self.inner.operators()

    def close(self) -> None:
        self.inner.close()


class GoodEngine(OnnxRuntime):
    session: type[Wrapped] = Wrapped

    def open(self, folder: Path, device: str = "auto") -> Any:
        return self.session(super().open(folder, device))


@engine("numbers that are a hundredth off", "every_format_computes", "gpt in onnx")
class OffSession(Wrapped):
    def run(self, graph: str, inputs: Any, state: Any = None) -> Any:
        outputs, state = super().run(graph, inputs, state)
        return {name: value * value.dtype.type(1.01) for name, value in outputs.items()}, state


@engine("no word on what computes", "it_says_what_computes", "provider is empty")
class Silent(Wrapped):
    def __init__(self, inner: Session) -> None:
        super().__init__(inner)
        self.provider = ""


@engine("a setting that no receipt can hold", "it_says_what_computes", "no word, no number")
class Secretive(Wrapped):
    def __init__(self, inner: Session) -> None:
        super().__init__(inner)
        self.settings = {"options": object()}  # pyright: ignore


@engine("whatever device is asked for", "other_devices_are_refused", "device 'abacus' is taken")
class Anywhere(OnnxRuntime):
    def open(self, folder: Path, device: str = "auto") -> Any:
        return super().open(folder, "cpu")


@engine("damaged files", "damage_is_noticed", "and it is opened")
class Trusting(OnnxRuntime):
    def open(self, folder: Path, device: str = "auto") -> Any:
        return OnnxSession(Artifact.open(folder), "cpu")


@engine(
    "inputs that there are not", "wrong_calls_are_refused", "an input that there is not is taken"
)
class Generous(Wrapped):
    def run(self, graph: str, inputs: Any, state: Any = None) -> Any:
        known = (
            {port.name for port in self.signatures[graph].inputs}
            if graph in self.signatures
            else {*inputs}
        )
        return super().run(graph, {k: v for k, v in inputs.items() if k in known}, state)


@engine("one array for the results of all calls", "results_are_the_callers",
        "outputs change with the next call")  # fmt: skip
class Thrifty(Wrapped):
    def __init__(self, inner: Session) -> None:
        super().__init__(inner)
        self.kept: dict[Any, Array] = {}

    def run(self, graph: str, inputs: Any, state: Any = None) -> Any:
        outputs, state = super().run(graph, inputs, state)
        for name, value in outputs.items():
            outputs[name] = self.kept.setdefault((graph, name, value.shape), value)
            np.copyto(outputs[name], value)
        return outputs, state


@engine("a state that is the session's", "state_may_be_branched", "gone on from twice")
class Possessive(Wrapped):
    latest: State | None = None

    def run(self, graph: str, inputs: Any, state: Any = None) -> Any:
        outputs, self.latest = super().run(graph, inputs, self.latest if state else state)
        return outputs, self.latest


@engine("rows in their old order", "rows_may_be_taken", "taken rows give another")
class Orderly(Wrapped):
    def take(self, state: State, rows: Array) -> State:
        return super().take(state, np.sort(rows))


@engine("torch, to open a folder without it", "torch_is_not_needed", "opening onnx imports torch")
class Heavy(OnnxRuntime):
    def open(self, folder: Path, device: str = "auto") -> Any:
        import torch

        assert torch.cuda is not None
        return super().open(folder, device)


@engine("an engine that is no cambrian.Runtime", "interface", "no subclass of cambrian.Runtime")
class NoRuntime:
    pass
