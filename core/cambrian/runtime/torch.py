"""PyTorch as an engine: runs a model's graphs as they are, without exporting them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from cambrian.artifact import Port, Signature
from cambrian.checkpoint import Checkpoint
from cambrian.errors import CambrianError
from cambrian.model import Model
from cambrian.registry import load_registry
from cambrian.runtime import Array, Runtime, Session, State
from cambrian.runtime.binding import check_rows, collect, signature_of
from cambrian.training.device import choose_device


class TorchSession(Session):
    """A model's graphs on one device.

    The model, which must be in eval mode, is moved there; what it computes is the reference that
    exports are held to. What is bfloat16 in the model goes in and comes out as float32, for numpy
    has no such type. `compiled` leaves the graphs to torch.compile, at their first call.
    """

    def __init__(self, model: Model, device: str = "cpu", compiled: bool = False) -> None:
        if model.training:
            raise CambrianError("A session needs the model in eval mode; call model.eval() first.")
        self.device = choose_device(device)
        model.to(self.device)
        self.graphs = {graph.name: graph for graph in model.graphs()}
        self.signatures = {name: outside(graph.signature) for name, graph in self.graphs.items()}
        self.provider = f"torch {self.device}"
        self.settings = {"threads": torch.get_num_threads()} | ({"compiled": 1} if compiled else {})
        self._modules: dict[str, Callable[..., Sequence[Tensor]]] = {
            name: torch.compile(graph.module) if compiled else graph.module
            for name, graph in self.graphs.items()
        }

    @torch.inference_mode()
    def run(
        self, graph: str, inputs: Mapping[str, Array], state: State | None = None
    ) -> tuple[dict[str, Array], State]:
        signature = signature_of(self.signatures, graph)
        values, _ = collect(graph, signature, inputs, state)
        given = {
            port.name: self._on_device(values[port.name], getattr(torch, port.dtype))
            for port in self.graphs[graph].signature.inputs
        }
        outputs = self._modules[graph](**given)
        named = dict(zip((port.name for port in signature.outputs), outputs, strict=True))
        renewed = {feeds: named.pop(name) for name, feeds in signature.state.items()}
        return {name: _numpy(value) for name, value in named.items()}, {**(state or {}), **renewed}

    def _on_device(self, value: Array | Tensor, dtype: torch.dtype) -> Tensor:
        return value if isinstance(value, Tensor) else _tensor(value).to(self.device, dtype)

    @torch.inference_mode()
    def take(self, state: State, rows: Array) -> State:
        check_rows(rows, (value.shape[0] for value in state.values()))
        index = _tensor(rows).to(self.device)
        return {name: value.index_select(0, index) for name, value in state.items()}

    def close(self) -> None:
        self.graphs, self._modules = {}, {}


class TorchRuntime(Runtime):
    """Opens checkpoints."""

    def open(self, folder: Path, device: str) -> TorchSession:
        """Build the model, load its weights, and take it to `device`."""
        model = Checkpoint.open(folder, load_registry().models.values()).model()
        return TorchSession(model, device)


def outside(signature: Signature) -> Signature:
    """A graph's signature as a caller in numpy sees it."""

    def seen(ports: Sequence[Port]) -> tuple[Port, ...]:
        return tuple(
            replace(port, dtype="float32") if port.dtype == "bfloat16" else port for port in ports
        )

    return replace(signature, inputs=seen(signature.inputs), outputs=seen(signature.outputs))


def _tensor(value: Array) -> Tensor:
    return torch.from_numpy(np.array(value, order="C"))  # torch takes no read-only array


def _numpy(value: Tensor) -> Array:
    if value.dtype == torch.bfloat16:
        value = value.float()
    return cast(Array, np.asarray(value.cpu()))
