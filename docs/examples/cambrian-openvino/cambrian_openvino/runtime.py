"""OpenVINO as an engine, on the CPU, where its device's memory is numpy's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cambrian import Artifact, CambrianError, Runtime, Session, UsageError
from cambrian.runtime import Array, State
from cambrian.runtime.binding import check_rows, collect, signature_of
from cambrian_openvino.quiet import openvino

# Float32 must mean float32: where a CPU has instructions for bfloat16 it would compute with those.
EXACT = {"EXECUTION_MODE_HINT": "ACCURACY"}
NO_OPERATORS = ("Const", "Input", "Output")


class OpenVinoRuntime(Runtime):
    """Opens an exported folder."""

    def open(self, folder: Path, device: str = "auto") -> OpenVinoSession:
        """Check the files against the manifest and compile every graph.

        UsageError for a device that is not the CPU, CambrianError where OpenVINO cannot read or
        compile a file.
        """
        if device not in ("auto", "cpu"):
            raise UsageError(f"cambrian-openvino has no device '{device}'; use auto or cpu.")
        artifact = Artifact.open(folder)
        artifact.check()
        return OpenVinoSession(artifact)


class OpenVinoSession(Session):
    """An artifact's graphs, compiled for the CPU. State is numpy's: it is copied once a call."""

    provider = "OpenVINO CPU"

    def __init__(self, artifact: Artifact) -> None:
        graphs, core = artifact.manifest.graphs, openvino.Core()
        self.signatures = {name: graph.signature for name, graph in graphs.items()}
        self._compiled = {
            name: compiled(core, artifact.path / graph.file) for name, graph in graphs.items()
        }
        threads = [one.get_property("INFERENCE_NUM_THREADS") for one in self._compiled.values()]
        self.settings = {"openvino": openvino.__version__, "threads": max(threads, default=0)}

    def run(
        self, graph: str, inputs: Mapping[str, Array], state: State | None = None
    ) -> tuple[dict[str, Array], State]:
        signature = signature_of(self.signatures, graph)
        given, _ = collect(graph, signature, inputs, state)
        try:
            values = self._compiled[graph](given).to_tuple()
        except RuntimeError as error:
            raise CambrianError(f"OpenVINO cannot compute {graph}: {first(error)}") from error
        named = dict(zip((port.name for port in signature.outputs), values, strict=True))
        renewed = {feeds: named.pop(name) for name, feeds in signature.state.items()}
        return named, {**(state or {}), **renewed}

    def take(self, state: State, rows: Array) -> State:
        check_rows(rows, (len(value) for value in state.values()))
        return {name: value[rows] for name, value in state.items()}

    def operators(self) -> Mapping[str, int]:
        kinds = (
            node.get_rt_info()["layerType"].astype(str)
            for one in self._compiled.values()
            for node in one.get_runtime_model().get_ops()
        )
        return Counter(kind for kind in kinds if kind not in NO_OPERATORS)

    def close(self) -> None:
        self._compiled = {}


def compiled(core: openvino.Core, file: Path) -> Any:
    """One graph, ready to run; CambrianError where OpenVINO cannot read or compile it."""
    try:
        return core.compile_model(file, "CPU", EXACT)
    except RuntimeError as error:
        raise CambrianError(f"OpenVINO cannot load {file}: {first(error)}") from error


def first(error: Exception) -> str:
    """The last line of what OpenVINO says: those before it are places in its own source."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].rstrip(".") + "."
