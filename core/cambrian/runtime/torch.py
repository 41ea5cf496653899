"""PyTorch as an engine: runs a model's graphs as they are, without exporting them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from cambrian.artifact import Port, Signature, resolve_shape
from cambrian.checkpoint import Checkpoint
from cambrian.errors import CambrianError
from cambrian.model import Model
from cambrian.registry import load_registry
from cambrian.runtime import Array, Runtime, Session, State
from cambrian.runtime.binding import bind, check_rows, signature_of
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
        state = state or {}
        names = [port.name for port in signature.inputs]
        held = {name: state[name] for name in names if name in state and name not in inputs}
        sizes = bind(graph, signature, inputs, {name: x.shape for name, x in held.items()})
        given: dict[str, Tensor] = {}
        for port in self.graphs[graph].signature.inputs:
            dtype = getattr(torch, port.dtype)
            if port.name in inputs:
                given[port.name] = _tensor(inputs[port.name]).to(self.device, dtype)
            elif port.name in held:
                given[port.name] = held[port.name]
            else:
                shape = resolve_shape(port.shape, sizes)
                given[port.name] = torch.zeros(shape, dtype=dtype, device=self.device)
        values = self._modules[graph](**given)
        named = dict(zip((port.name for port in signature.outputs), values, strict=True))
        renewed = {feeds: named.pop(name) for name, feeds in signature.state.items()}
        return {name: _numpy(value) for name, value in named.items()}, {**state, **renewed}

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
