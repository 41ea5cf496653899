"""ONNX Runtime as an engine. State stays on the device, as the runtime's own values."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from cambrian.artifact import Artifact
from cambrian.errors import BrokenFile, CambrianError, UsageError
from cambrian.runtime import Array, Runtime, Session, State
from cambrian.runtime.binding import bind, check_rows, signature_of

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
FATAL = 4  # of ONNX Runtime's log severities: what matters is raised, not logged


class OnnxRuntime(Runtime):
    """Opens an exported folder whose format is "onnx"."""

    def open(self, folder: Path, device: str = "auto") -> OnnxSession:
        """Check the files against the manifest and load every graph on `device`.

        "auto" is CUDA if it really serves, else the CPU. UsageError for another name,
        CambrianError where CUDA is asked for and does not serve, BrokenFile for damaged files.
        """
        if device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"ONNX Runtime has no device '{device}'; use auto, cpu or cuda.")
        artifact = Artifact.open(folder)
        if artifact.manifest.format != "onnx":
            raise UsageError(f"{folder} holds {artifact.manifest.format} files, not onnx.")
        artifact.check()
        if device == "cuda" or (device == "auto" and _has_nvidia_driver()):
            try:
                return OnnxSession(artifact, "cuda")
            except NotServedError:
                if device == "cuda":
                    raise
        return OnnxSession(artifact, "cpu")


class NotServedError(CambrianError):
    """The provider asked for does not serve the session."""


class OnnxSession(Session):
    """An artifact's graphs, each an onnxruntime.InferenceSession, on "cpu" or "cuda"."""

    def __init__(self, artifact: Artifact, device: str) -> None:
        graphs = artifact.manifest.graphs
        self.device = device
        self.signatures = {name: graph.signature for name, graph in graphs.items()}
        options = _options(shared=len(graphs) > 1)
        self.settings = {
            "optimization": options.graph_optimization_level.name,
            "threads": options.intra_op_num_threads,
        }
        self._sessions = {
            name: _load(artifact.path / graph.file, device, options)
            for name, graph in graphs.items()
        }
        self._gathers: dict[int, Any] = {}  # by the number of the elements' type
        self.provider = CUDA if device == "cuda" else CPU

    def run(
        self, graph: str, inputs: Mapping[str, Array], state: State | None = None
    ) -> tuple[dict[str, Array], State]:
        signature = signature_of(self.signatures, graph)
        state = state or {}
        names = [port.name for port in signature.inputs]
        held = {name: state[name] for name in names if name in state and name not in inputs}
        empty = bind(graph, signature, inputs, {name: x.shape() for name, x in held.items()})
        binding = self._sessions[graph].io_binding()
        for port in signature.inputs:
            if port.name in inputs:
                binding.bind_cpu_input(port.name, np.asarray(inputs[port.name], order="C"))
            elif port.name in held:
                binding.bind_ortvalue_input(port.name, held[port.name])
            else:
                zeros = np.zeros(empty[port.name], port.dtype)
                value = onnxruntime.OrtValue.ortvalue_from_numpy(zeros, self.device)
                binding.bind_ortvalue_input(port.name, value)
        for port in signature.outputs:
            binding.bind_output(port.name, self.device if port.name in signature.state else "cpu")
        try:
            self._sessions[graph].run_with_iobinding(binding)
        except Exception as error:  # its errors share no class but this
            raise CambrianError(f"ONNX Runtime cannot compute {graph}: {_first(error)}") from error
        values = {
            port.name: value
            for port, value in zip(signature.outputs, binding.get_outputs(), strict=True)
        }
        renewed = {feeds: values.pop(name) for name, feeds in signature.state.items()}
        return {name: value.numpy() for name, value in values.items()}, {**state, **renewed}

    def take(self, state: State, rows: Array) -> State:
        check_rows(rows, (value.shape()[0] for value in state.values()))
        if self.device != "cpu":
            return {name: self._gathered(value, rows) for name, value in state.items()}
        return {  # the runtime takes numpy's memory as it is: one copy, and faster than a graph
            name: onnxruntime.OrtValue.ortvalue_from_numpy(value.numpy()[rows])
            for name, value in state.items()
        }

    def _gathered(self, value: Any, rows: Array) -> Any:
        """The rows of a value, on its device: a graph of the one operator."""
        kind = value.element_type()
        if kind not in self._gathers:
            self._gathers[kind] = _load(gather(kind), self.device, _options(shared=True))
        binding = self._gathers[kind].io_binding()
        binding.bind_ortvalue_input("state", value)
        binding.bind_cpu_input("rows", np.asarray(rows, order="C"))
        binding.bind_output("taken", self.device)
        self._gathers[kind].run_with_iobinding(binding)
        return binding.get_outputs()[0]

    def close(self) -> None:
        self._sessions, self._gathers = {}, {}


def _options(shared: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = _cores()
    options.log_severity_level = FATAL
    # It keeps a plan for every shape seen, which is a new one at each token: memory grows, and
    # nothing was measured to be faster.
    options.enable_mem_pattern = False
    if shared:  # idle threads of one graph's session would spin against another's
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def gather(kind: int) -> bytes:
    """A graph that takes rows of a tensor whose elements have ONNX's type number `kind`."""
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Gather", ["state", "rows"], ["taken"], axis=0)],
        "take",
        [
            helper.make_tensor_value_info("state", kind, None),
            helper.make_tensor_value_info("rows", TensorProto.INT64, ["rows"]),
        ],
        [helper.make_tensor_value_info("taken", kind, None)],
    )
    opset = helper.make_opsetid("", 20)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()


def _load(file: Path | bytes, device: str, options: Any) -> Any:
    """Load one graph; NotServedError if `device` is not what would compute it."""
    # TF32 rounds float32 to 10 bits in matrix products: float32 must mean float32.
    providers: list[Any] = [(CUDA, {"use_tf32": "0"}), CPU] if device == "cuda" else [CPU]
    with _quiet():
        if device == "cuda":
            onnxruntime.preload_dlls()
        try:
            session = onnxruntime.InferenceSession(file, options, providers=providers)
        except Exception as error:  # its errors share no class but this
            raise BrokenFile(f"ONNX Runtime cannot load {file}: {_first(error)}") from error
    if device == "cuda" and session.get_providers()[0] != CUDA:
        raise NotServedError(
            "ONNX Runtime cannot use CUDA here: no GPU, no driver, or no CUDA 13 and cuDNN 9 "
            "libraries it could load. Use --device cpu, or install onnxruntime-gpu with them."
        )
    return session


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Mute what preloading prints and what the runtime's default logger writes to stderr."""
    onnxruntime.set_default_logger_severity(FATAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        onnxruntime.set_default_logger_severity(3)


def _has_nvidia_driver() -> bool:
    """Whether trying CUDA is worth its time."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _cores() -> int:
    """Physical cores that this process may use: a second thread on a core gains nothing here."""
    if not hasattr(os, "sched_getaffinity"):
        return max(1, (os.cpu_count() or 1))
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores: set[str] = set()
    for cpu in os.sched_getaffinity(0):
        try:
            cores.add(Path(topology.format(cpu)).read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return len(cores)


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".") + "."
