"""Engines: how a pipeline talks to whatever runs a graph. Arrays in, arrays out, no torch.

Shapes and dtypes are those of the graph's `Signature`. What a signature declares as state never
leaves the engine's device: `run` returns it as an opaque mapping to hand to the next call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cambrian.artifact import Signature

Array = NDArray[np.generic]
State = Mapping[str, Any]  # keyed by the input it feeds; the values belong to the engine


class Session(ABC):
    """Graphs, ready to run on one device.

    `provider` names what really computes, for instance "torch cpu" or "CPUExecutionProvider";
    `settings` say how, for the receipts.
    """

    provider: str
    signatures: Mapping[str, Signature]
    settings: Mapping[str, str | int] = MappingProxyType({})

    @abstractmethod
    def run(
        self, graph: str, inputs: Mapping[str, Array], state: State | None = None
    ) -> tuple[dict[str, Array], State]:
        """Compute `graph` and return (outputs that are no state, new state).

        `state` is what an earlier call returned. Inputs that feed from state and that neither
        `inputs` nor `state` holds start empty: every dimension that no given input fixes is 0.
        The new state holds the old one's values wherever this call did not renew them; the old
        one may be gone on with again.
        """

    @abstractmethod
    def take(self, state: State, rows: Array) -> State:
        """The state of the given rows (int64, may repeat) of the batch, in that order.

        A state's first dimension is the batch. The state given is left as it was, and the new
        one is on the device too. CambrianError where there is no such row.
        """

    def operators(self) -> Mapping[str, int]:
        """How many operators of each kind there are, all graphs together, after the engine has
        rewritten them; empty where an engine cannot tell."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """Free the device's memory."""


class Runtime(ABC):
    """Opens a folder: a checkpoint or an artifact."""

    @abstractmethod
    def open(self, folder: Path, device: str) -> Session:
        """Return a session on `device` ("auto", "cpu", "cuda", ...).

        A device asked for by name that does not really serve the session is a CambrianError.
        """
