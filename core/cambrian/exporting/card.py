"""The exported folder's README.md: what it is, what was checked, how to run it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cambrian.artifact import Manifest
from cambrian.card import CARD, block, header, quoted, sealed

__all__ = ["CARD", "card"]


def card(
    manifest: Manifest, summary: str, name: str, *, address: str = "", license: str = ""
) -> str:
    """Write the card from the manifest and its receipt; `address` is where the folder can be had,
    by default `name`."""
    found, place = manifest.receipt, address or name
    graphs = "\n".join(
        f"- {quoted(graph.file)}: graph {quoted(key)}" for key, graph in manifest.graphs.items()
    )
    versions = ", ".join(
        f"{quoted(str(key))} {quoted(str(value))}" for key, value in found["versions"].items()
    )
    head = "\n".join(header(manifest.task, [manifest.architecture, manifest.format], license))
    use = "\n".join(block(f"cambrian run {place}\ncambrian verify {'FOLDER' if address else name}"))
    return sealed(f"""{head}
# {quoted(name)}

{quoted(manifest.architecture)} ({quoted(summary)}) for {quoted(manifest.task)}, exported to \
{quoted(manifest.format)} in {quoted(manifest.precision)} by Cambrian {quoted(manifest.cambrian)}.

{graphs}

{use}
## Checked against the model{" with its weights fitted" * found.get("fitted", False)}

{_quality(found)}Every output of every case, over all its elements, on \
{quoted(str(found["provider"]))}: at most \
{found["max_abs_diff"]:.2g} off, where {found["limit"]:.0e} times the largest magnitude (at least \
1) is allowed; largest elements agree in {found["argmax_agreement"]:.4%}; the pipeline's probe: \
{quoted(str(found["probe"]))}.

| case | max difference | allowed | relative RMS | argmax agreement |
|---|---|---|---|---|
{_rows(found["cases"])}

Weights sha256 `{quoted(str(found["weights_sha256"]))}`; {versions}.
""")


def _quality(found: Mapping[str, Any]) -> str:
    """What rounding cost, if it was measured."""
    if "quality" not in found:
        return ""
    before, after = found["quality"]["model"], found["quality"]["export"]
    figures = (f"{quoted(key)} {after[key]:.4g} (the model's: {before[key]:.4g})" for key in after)
    return f"On held-out data: {', '.join(figures)}.\n\n"


def _rows(cases: list[Mapping[str, Any]]) -> str:
    return "\n".join(
        f"| {quoted(case['name'])} | {case['max_abs_diff']:.2g} | {case['allowed']:.2g} "
        f"| {case['relative_rms']:.2g} | {case['argmax_agreement']:.4%} |"
        for case in cases
    )
