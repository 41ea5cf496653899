"""The exported folder's README.md: what it is, what was checked, how to run it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cambrian.artifact import Manifest

CARD = "README.md"


def card(manifest: Manifest, summary: str, name: str) -> str:
    """Write the card from the manifest and its receipt."""
    found = manifest.receipt
    graphs = "\n".join(f"- `{graph.file}`: graph `{key}`" for key, graph in manifest.graphs.items())
    versions = ", ".join(f"{key} {value}" for key, value in found["versions"].items())
    return f"""# {name}

{manifest.architecture} ({summary}) for {manifest.task}, exported to {manifest.format} in \
{manifest.precision} by Cambrian {manifest.cambrian}.

{graphs}

    cambrian run {name}
    cambrian verify {name}

## Checked against the model

Every output of every case, over all its elements, on {found["provider"]}: at most \
{found["max_abs_diff"]:.2g} off, where {found["limit"]:.0e} times the largest magnitude (at least \
1) is allowed; largest elements agree in {found["argmax_agreement"]:.4%}; the pipeline's probe: \
{found["probe"]}.

| case | max difference | allowed | relative RMS | argmax agreement |
|---|---|---|---|---|
{_rows(found["cases"])}

Weights sha256 `{found["weights_sha256"]}`; {versions}.
"""


def _rows(cases: list[Mapping[str, Any]]) -> str:
    return "\n".join(
        f"| {case['name']} | {case['max_abs_diff']:.2g} | {case['allowed']:.2g} "
        f"| {case['relative_rms']:.2g} | {case['argmax_agreement']:.4%} |"
        for case in cases
    )
