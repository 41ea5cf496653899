"""Do published weights, as we read them, compute what their reference implementation does?

The row of `specs.Golden` passes if it is finite, if of each id

    |ours - reference| <= tolerance * max(1, max|reference|)

and if our largest elements are those ids in that order, but that two which differ by no more than
the same bound may change places.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cambrian.errors import BrokenFile, CambrianError, Rejected, UsageError
from cambrian.exporting.parity import tolerance_for
from cambrian.hub import Report
from cambrian.hub.snapshot import silent
from cambrian.loading import checkpoint_in, folder_for
from cambrian.registry import load_registry
from cambrian.runtime import Array, Session, State
from cambrian.runtime.binding import signature_of
from cambrian.specs import Golden

Row: TypeAlias = NDArray[np.float64]


def verify_golden(name: str, *, device: str = "cpu", report: Report = silent) -> dict[str, Any]:
    """Hold a registered model's weights, fetched if need be, to its golden values; in float32.

    Returns the receipt. UsageError where the registry has no golden values of `name`, BrokenFile
    where the model cannot compute them, Rejected where it computes others.
    """
    from cambrian.runtime.torch import TorchSession

    registry = load_registry()
    resolved = registry.resolve(name)
    entry = resolved.entry
    if entry is None or entry.golden is None:
        whose = f"'{name}' is no registered model and" if entry is None else f"'{name}'"
        raise UsageError(
            f"{whose} has no golden values; run its reference implementation on a few tokens and "
            f"enter the largest logits as [models.{entry.name if entry else 'NAME'}.golden] "
            "beside its weights, as docs/how-to/hub.md shows."
        )
    golden = entry.golden
    checkpoint = checkpoint_in(resolved, registry, folder_for(resolved, registry, name, report))
    session = TorchSession(checkpoint.model(), device)
    try:
        output, row = row_of(session, golden, name)
        found = compare(golden, row, f"'{name}', by '{output}' at position {golden.position},")
        provider = session.provider
    finally:
        session.close()
    return {
        "passed": True,
        "model": name,
        "weights": entry.weights,
        "weights_sha256": checkpoint.weights_sha256(),
        "source": golden.source,
        "output": output,
        "position": golden.position,
        "ids": len(golden.ids),
        **found,
        "provider": provider,
    }


def row_of(session: Session, golden: Golden, name: str) -> tuple[str, Row]:
    """The output that golden values are of, and its row (N,) at their position."""
    try:
        outputs = run(session, golden)
        reals = [key for key, value in outputs.items() if value.dtype.kind == "f"]
        output = golden.output or next(iter(reals), "")
        if output not in reals:
            known = ", ".join(reals) or "none"
            raise CambrianError(f"there is no output '{output}' of real numbers, only {known}")
        value = outputs[output]
        rows = value.reshape(-1, value.shape[-1])  # the batch is one
        if not -len(rows) <= golden.position < len(rows):
            raise CambrianError(f"'{output}' has {len(rows)} positions, none {golden.position}")
        return output, rows[golden.position].astype(np.float64)
    except (CambrianError, IndexError, RuntimeError) as error:  # torch's, for ids beyond a table
        reason = str(error).splitlines()[0].rstrip(".")
        raise BrokenFile(
            f"The golden values of '{name}' do not fit the model: {reason}."
        ) from error


def run(session: Session, golden: Golden) -> Mapping[str, Array]:
    """Call the graphs that inputs are given for; return the last one's outputs."""
    for graph in golden.inputs:
        signature_of(session.signatures, graph)
    outputs: Mapping[str, Array] = {}
    state: State | None = None
    for graph, signature in session.signatures.items():
        if graph not in golden.inputs:
            continue
        ports = {port.name: port for port in signature.inputs}
        inputs: dict[str, Array] = {}
        for key, numbers in golden.inputs[graph].items():
            value = np.array(numbers)
            port = ports.get(key)
            if port is not None and np.can_cast(value.dtype, port.dtype, "same_kind"):
                value = value.astype(port.dtype)
            inputs[key] = value if port is not None and len(port.shape) == 1 else value[None]
        outputs, state = session.run(graph, inputs, state)
    return outputs


def compare(golden: Golden, row: Row, whose: str) -> dict[str, float]:
    """Compare the row with the reference's elements; Rejected names the first that differs."""
    start = f"{whose} does not compute what {golden.source} did"
    if max(golden.ids) >= row.size:
        raise Rejected(f"{start}: id {max(golden.ids)} is none of the {row.size} there are.")
    if not np.isfinite(row).all():
        raise Rejected(f"{start}: it gives NaN or infinity.")
    wanted = np.array(golden.values)
    allowed = tolerance_for("float32", golden.tolerance) * max(1.0, float(np.abs(wanted).max()))
    largest = np.argsort(-row, kind="stable")[: len(golden.ids)].tolist()
    differences = np.abs(row[list(golden.ids)] - wanted)
    for place, (ours, theirs) in enumerate(zip(largest, golden.ids, strict=True)):
        if abs(row[ours] - row[theirs]) > allowed:
            raise Rejected(
                f"{start}: in place {place + 1} is id {ours} ({row[ours]:.6g}), not id {theirs} "
                f"({row[theirs]:.6g}; there {wanted[place]:.6g})."
            )
        if differences[place] > allowed:
            raise Rejected(
                f"{start}: id {theirs} in place {place + 1} has {row[theirs]:.6g}, there "
                f"{wanted[place]:.6g}; allowed is a difference of {allowed:.3g}."
            )
    return {"max_abs_diff": float(differences.max()), "allowed": allowed}
