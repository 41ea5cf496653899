"""PyTorch as an engine: runs a model's graphs as they are, without exporting them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

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
    exports are held to. bfloat16 outputs come out as float32, for numpy has no such type.
    """

    def __init__(self, model: Model, device: str = "cpu") -> None:
        if model.training:
            raise CambrianError("A session needs the model in eval mode; call model.eval() first.")
        self.device = choose_device(device)
        model.to(self.device)
        self.graphs = {graph.name: graph for graph in model.graphs()}
        self.signatures = {name: graph.signature for name, graph in self.graphs.items()}
        self.provider = f"torch {self.device}"

    @torch.inference_mode()
    def run(
        self, graph: str, inputs: Mapping[str, Array], state: State | None = None
    ) -> tuple[dict[str, Array], State]:
        signature = signature_of(self.signatures, graph)
        state = state or {}
        names = [port.name for port in signature.inputs]
        held = {name: state[name] for name in names if name in state and name not in inputs}
        empty = bind(graph, signature, inputs, {name: x.shape for name, x in held.items()})
        given: dict[str, Tensor] = {}
        for port in signature.inputs:
            if port.name in inputs:
                given[port.name] = _tensor(inputs[port.name]).to(self.device)
            elif port.name in held:
                given[port.name] = held[port.name]
            else:
                dtype = getattr(torch, port.dtype)
                given[port.name] = torch.zeros(empty[port.name], dtype=dtype, device=self.device)
        values = self.graphs[graph].module(**given)
        named = dict(zip((port.name for port in signature.outputs), values, strict=True))
        renewed = {feeds: named.pop(name) for name, feeds in signature.state.items()}
        return {name: _numpy(value) for name, value in named.items()}, {**state, **renewed}

    @torch.inference_mode()
    def take(self, state: State, rows: Array) -> State:
        check_rows(rows, (value.shape[0] for value in state.values()))
        index = _tensor(rows).to(self.device)
        return {name: value.index_select(0, index) for name, value in state.items()}

    def close(self) -> None:
        self.graphs = {}


class TorchRuntime(Runtime):
    """Opens checkpoints."""

    def open(self, folder: Path, device: str) -> TorchSession:
        """Build the model, load its weights, and take it to `device`."""
        model = Checkpoint.open(folder, load_registry().models.values()).model()
        return TorchSession(model, device)


def _tensor(value: Array) -> Tensor:
    return torch.from_numpy(np.array(value, order="C"))  # torch takes no read-only array


def _numpy(value: Tensor) -> Array:
    if value.dtype == torch.bfloat16:
        value = value.float()
    return cast(Array, np.asarray(value.cpu()))
