"""ONNX Runtime as an engine. State stays on the device, as the runtime's own values."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Generator, Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnxruntime

from cambrian.artifact import MANIFEST, Artifact, GraphFile, Port, growing, resolve_shape
from cambrian.errors import BrokenFile, CambrianError, UsageError
from cambrian.runtime import Array, Runtime, Session, State
from cambrian.runtime.binding import check_rows, collect, signature_of
from cambrian_onnx.buffers import Buffers, Held, reserve, take

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
LOCATION = re.compile(rb"\x0a\x08location\x12(?P<length>[\x80-\xff]?[\x00-\x7f])")
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
        if artifact.manifest.format not in ("onnx", "onnx-ort", "triton"):
            raise UsageError(f"{folder} holds {artifact.manifest.format} files, not onnx.")
        artifact.check()
        require_covered(artifact)
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
        self._folder, self._files = artifact.path, dict(graphs)
        self._sessions = {
            name: _load(artifact.path / graph.file, device, options)
            for name, graph in graphs.items()
        }
        for name, graph in graphs.items():
            require_ports(artifact.path / graph.file, graph, self._sessions[name])
        self._growing = {name: growing(graph.signature) for name, graph in graphs.items()}
        self._axes = {
            graph: {name: axis for name, (axis, _) in found.items()}
            for graph, found in self._growing.items()
        }
        self._gathers: dict[int, Any] = {}  # by the number of the elements' type
        self.provider = CUDA if device == "cuda" else CPU

    def run(
        self, graph: str, inputs: Mapping[str, Array], state: State | None = None
    ) -> tuple[dict[str, Array], State]:
        signature = signature_of(self.signatures, graph)
        values, sizes = collect(graph, signature, inputs, state, lambda value: value.shape())
        buffers = self._reserve(graph, values, sizes)
        binding = self._binding(graph, buffers)
        in_place = {} if buffers is None else buffers.values
        for name, value in values.items():
            if name not in in_place:
                self._bind_input(binding, name, value)
        bound = [name for name, feeds in signature.state.items() if feeds in in_place]
        for port in signature.outputs:
            feeds = signature.state.get(port.name)
            if feeds not in in_place:
                binding.bind_output(port.name, "cpu" if feeds is None else self.device)
                bound.append(port.name)
        try:
            self._sessions[graph].run_with_iobinding(binding)
        except Exception as error:  # its errors share no class but this
            raise CambrianError(f"ONNX Runtime cannot compute {graph}: {_first(error)}") from error
        found = dict(zip(bound, binding.get_outputs(), strict=True))
        renewed = {feeds: found.pop(name) for name, feeds in signature.state.items()}
        if buffers is not None:
            buffers.filled = self._total(graph, sizes)
            renewed |= buffers.held()
        return {name: value.numpy() for name, value in found.items()}, {**(state or {}), **renewed}

    def take(self, state: State, rows: Array) -> State:
        check_rows(rows, (value.shape()[0] for value in state.values()))
        grown = {name: value for name, value in state.items() if isinstance(value, Held)}
        taken: dict[str, Any] = {**take(grown, rows, self.device)}
        for name in state.keys() - grown.keys():
            if self.device != "cpu":
                taken[name] = self._gathered(state[name], rows)
            else:  # the runtime takes numpy's memory as it is: one copy, faster than a graph
                rows_of = state[name].numpy()[rows]
                taken[name] = onnxruntime.OrtValue.ortvalue_from_numpy(rows_of)
        return taken

    def _bind_input(self, binding: Any, name: str, value: Any) -> None:
        if isinstance(value, onnxruntime.OrtValue):
            binding.bind_ortvalue_input(name, value)
        else:
            array = value.numpy() if isinstance(value, Held) else value
            binding.bind_cpu_input(name, np.asarray(array, order="C"))

    def _binding(self, graph: str, buffers: Buffers | None) -> Any:
        """The binding of a call: that of the buffers, if there are any, with their length."""
        if buffers is None:
            return self._sessions[graph].io_binding()
        file, session = self._files[graph], self._sessions[graph]
        binding = buffers.bindings.get(session)
        if binding is None:
            binding = buffers.bindings[session] = session.io_binding()
            for output, name in file.signature.state.items():
                if name in buffers.values:
                    binding.bind_ortvalue_input(name, buffers.values[name])
                    binding.bind_ortvalue_output(output, buffers.values[name])
        binding.bind_cpu_input(file.length, np.array([buffers.filled], np.int32))
        return binding

    def _reserve(
        self, graph: str, values: Mapping[str, Any], sizes: Mapping[str, int]
    ) -> Buffers | None:
        """Room for the state that the graph makes longer in place, if it does."""
        if not self._files[graph].length:
            return None
        axes = self._axes[graph]
        grown = {name: values[name] for name in axes}
        return reserve(grown, axes, self._total(graph, sizes), self.device)

    def _total(self, graph: str, sizes: Mapping[str, int]) -> int:
        """How many entries the state that grows has after a call."""
        _, dim = next(iter(self._growing[graph].values()))
        return resolve_shape((dim,), sizes)[0]

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

    def operators(self) -> Mapping[str, int]:
        found = Counter[str]()
        for graph in self._files.values():
            file = self._folder / graph.file
            found.update(optimised(file, self.device, _options(shared=True)))
        return found

    def close(self) -> None:
        self._sessions, self._gathers = {}, {}


def require_covered(artifact: Artifact) -> None:
    """BrokenFile unless the manifest has a hash of every file that a graph keeps weights in."""
    for graph in artifact.manifest.graphs.values():
        for location in locations(artifact.path / graph.file):
            name = (PurePosixPath(graph.file).parent / location).as_posix()
            if name not in artifact.manifest.files:
                raise BrokenFile(
                    f"{artifact.path / graph.file} keeps weights in {name}, of which {MANIFEST} "
                    "has no hash. Export the model again."
                )


def locations(file: Path) -> set[str]:
    """Where an ONNX file keeps what is not in itself: "location" and its value, as protobuf writes
    the two fields of an entry. They are looked for in the bytes, since `onnx` is slow to import."""
    found: set[str] = set()
    if not file.stat().st_size:  # which cannot be mapped
        return found
    with file.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as data:
        for match in LOCATION.finditer(data):
            start = match.end()
            length = sum((byte & 127) << 7 * n for n, byte in enumerate(match["length"]))
            found.add(data[start : start + length].decode(errors="replace"))
    return found


def require_ports(file: Path, graph: GraphFile, session: Any) -> None:
    """BrokenFile unless a file takes and gives what the manifest says, in names, types and ranks,
    and in the sizes of what goes in: they tell what memory is taken."""
    length = [Port(graph.length, "int32", (1,))] if graph.length else []
    ports = [*graph.signature.inputs, *length]
    for kind, theirs, said in (
        ("input", session.get_inputs(), ports),
        ("output", session.get_outputs(), graph.signature.outputs),
    ):
        found = {value.name: value for value in theirs}
        for port in said:
            value = found.pop(port.name, None)
            if value is None or not _fits(port, value, sizes=kind == "input"):
                raise BrokenFile(
                    f"{file} has no {kind} '{port.name}' as {MANIFEST} describes it. "
                    "Export the model again."
                )
        if found and kind == "input":
            raise BrokenFile(f"{file} has an input '{min(found)}' that {MANIFEST} does not name.")


def _fits(port: Port, value: Any, sizes: bool) -> bool:
    name = {"float32": "float", "float64": "double"}.get(port.dtype, port.dtype)
    if value.type != f"tensor({name})" or len(value.shape) != len(port.shape):
        return False
    pairs = zip(port.shape, value.shape, strict=True)
    return not sizes or all(a == b for a, b in pairs if isinstance(a, int) or isinstance(b, int))


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


def optimised(file: Path, device: str, options: Any) -> Counter[str]:
    """The operators of the graph that the runtime makes of the one in `file`, by their names;
    those that are not ONNX's own after their domain. Loads it once more for that."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "model.onnx")
        options.optimized_model_filepath = str(written)
        # Weights go elsewhere: they are not wanted, and a file of them all ends at 2 GiB.
        for key, value in (("file_name", "weights"), ("min_size_in_bytes", "1024")):
            entry = f"session.optimized_model_external_initializers_{key}"
            options.add_session_config_entry(entry, value)
        _load(file, device, options)
        graph = onnx.load(written, load_external_data=False).graph
    domains = {"": "", "ai.onnx": ""}
    return Counter(domains.get(n.domain, f"{n.domain}.") + n.op_type for n in graph.node)


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
