"""Checks that every engine makes before it computes: names, dtypes and shapes of a call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cambrian.artifact import Port, Signature, resolve_shape, terms
from cambrian.errors import CambrianError, nearest
from cambrian.runtime import Array, State

Shape = Sequence[int]


def signature_of(signatures: Mapping[str, Signature], graph: str) -> Signature:
    """The named graph's signature; CambrianError if there is none."""
    if graph not in signatures:
        known = ", ".join(signatures)
        hint = nearest(graph, signatures)
        raise CambrianError(f"There is no graph '{graph}', only {known}.{hint}")
    return signatures[graph]


def collect(
    graph: str,
    signature: Signature,
    inputs: Mapping[str, Array],
    state: State | None,
    shape_of: Callable[[Any], Shape] = lambda value: value.shape,
) -> tuple[dict[str, Any], dict[str, int]]:
    """All that a call of `graph` takes, in the signature's order, checked as `bind` does, and the
    sizes that it returns.

    An input comes from `inputs`, else from `state` as the engine left it there, else it is an
    empty numpy array: state that there is none of yet.
    """
    held = state or {}
    names = [port.name for port in signature.inputs]
    kept = {name: held[name] for name in names if name in held and name not in inputs}
    shapes = {name: shape_of(value) for name, value in kept.items()}
    sizes = bind(graph, signature, inputs, shapes)
    given = {**inputs, **kept}
    for port in signature.inputs:
        if port.name not in given:
            given[port.name] = np.zeros(resolve_shape(port.shape, sizes), port.dtype)
    return {name: given[name] for name in names}, sizes


def bind(
    graph: str, signature: Signature, inputs: Mapping[str, Array], held: Mapping[str, Shape]
) -> dict[str, int]:
    """Check a call of `graph` and return the size that each name of its dimensions has.

    `held` gives the shapes of the state that the call goes on with. A name has one size
    throughout, the same in every input: what stands in its place, or, where a multiple of it is
    wanted ("8*height"), that part of it. One that nothing fixes is left out, and counts as 0. Then
    every sum ("past + sequence") must come out. CambrianError says what is unknown, missing or
    wrong.
    """
    ports = {port.name: port for port in signature.inputs}
    for name, value in inputs.items():
        if name not in ports:
            raise CambrianError(f"{graph} has no input '{name}'.{nearest(name, ports)}")
        if dtype_name(value.dtype) != ports[name].dtype:
            raise CambrianError(
                f"{graph}: input '{name}' must be {ports[name].dtype}, not {value.dtype.name}."
            )
    feeding = set(signature.state.values()) | set(held)
    if missing := [name for name in ports if name not in inputs and name not in feeding]:
        raise CambrianError(f"{graph}: input '{missing[0]}' is missing.")
    shapes = {**held, **{name: value.shape for name, value in inputs.items()}}
    # Most of a state has one shape: each is checked once.
    alike = {(ports[n].shape, tuple(x)): ports[n] for n, x in shapes.items() if n in ports}
    given = [(port, shape) for (_, shape), port in alike.items()]
    sizes = _sizes(graph, given)
    _check_shapes(graph, given, sizes)
    return sizes


@functools.cache
def dtype_name(dtype: np.dtype[Any]) -> str:
    """numpy's name of it, which it is slow to say."""
    return dtype.name


def check_rows(rows: Array, sizes: Iterable[int]) -> None:
    """CambrianError unless `rows` (int64) are rows of batches of all these sizes."""
    if rows.dtype != np.int64 or rows.ndim != 1:
        raise CambrianError(f"Rows are an int64 list, not {rows.ndim}-dimensional {rows.dtype}.")
    size = min(sizes, default=None)
    if size is not None and len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < size:
        raise CambrianError(f"Rows {rows.tolist()} were asked for, but the batch has {size}.")


def _sizes(graph: str, given: Sequence[tuple[Port, tuple[int, ...]]]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    source: dict[str, str] = {}
    for port, shape in given:
        if len(shape) != len(port.shape):
            raise CambrianError(
                f"{graph}: input '{port.name}' must have {len(port.shape)} dimensions "
                f"({_text(port)}), not {len(shape)}."
            )
        for dim, length in zip(port.shape, shape, strict=True):
            name, size = _solved(graph, port, dim, length)
            if name and sizes.setdefault(name, size) != size:
                raise CambrianError(
                    f"{graph}: '{name}' is {sizes[name]} in '{source[name]}' but {size} in "
                    f"'{port.name}'."
                )
            source.setdefault(name, port.name)
    return sizes


def _solved(graph: str, port: Port, dim: int | str, length: int) -> tuple[str, int]:
    """The name that a dimension of this length fixes, and its size; no name ("") if none."""
    (factor, name), *others = terms(dim)
    if others or not name or not factor:
        return "", length
    if length % factor:
        raise CambrianError(
            f"{graph}: input '{port.name}' must have shape ({_text(port)}), but {length} is no "
            f"multiple of {factor}."
        )
    return name, length // factor


def _check_shapes(
    graph: str, given: Sequence[tuple[Port, tuple[int, ...]]], sizes: Mapping[str, int]
) -> None:
    for port, shape in given:
        expected = resolve_shape(port.shape, sizes)
        if shape != expected:
            raise CambrianError(
                f"{graph}: input '{port.name}' must have shape {expected} ({_text(port)}), "
                f"not {shape}."
            )


def _text(port: Port) -> str:
    return ", ".join(str(dim) for dim in port.shape)
