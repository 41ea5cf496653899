"""cambrian export"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cambrian.cli.completion import complete_model


def export(
    name: Annotated[
        str, typer.Argument(help="A checkpoint or a named model.", autocompletion=complete_model)
    ],
    out: Annotated[
        Path | None, typer.Argument(help="Folder to write. [default: NAME-FORMAT]")
    ] = None,
    kind: Annotated[str, typer.Option("--format", "-f", help="Which exporter.")] = "onnx",
    precision: Annotated[str, typer.Option(help="Number format of the graphs.")] = "float32",
    provider: Annotated[str, typer.Option(help="Device to verify on: auto, cpu, cuda.")] = "cpu",
    force: Annotated[bool, typer.Option("--force", help="Replace what is in the folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the receipt as JSON.")] = False,
) -> None:
    """Export a model and prove that the export equals it.

    An export that fails the proof is no export: exit code 1, and its files stay in OUT.rejected.

    \b
    Examples:
      cambrian export runs/bard
      cambrian export gpt2 gpt2-onnx --json
    """
    from cambrian import api
    from cambrian.cli.progress import Downloads, say

    with Downloads() as downloads:
        artifact = api.export(
            name,
            out or default_out(name, kind),
            format=kind,
            precision=precision,
            device=provider,
            force=force,
            report=say,
            fetching=downloads.report,
        )
    receipt = artifact.manifest.receipt
    if as_json:
        print(json.dumps({"folder": str(artifact.path), "receipt": receipt}))
        return
    show_receipt(receipt)
    print(f"{'artifact':<20}{artifact.path}")


def default_out(name: str, kind: str) -> Path:
    """Beside a folder; below runs/ for a name."""
    path = Path(name.removeprefix("hf://"))
    parent = path.parent if path.is_dir() else Path("runs")
    return parent / f"{path.resolve().name if path.is_dir() else path.name}-{kind}"


def show_receipt(receipt: Any) -> None:
    """Print what verification found."""
    labels = {
        "cases": "cases",
        "max_abs_diff": "largest difference",
        "argmax_agreement": "argmax agreement",
        "provider": "provider",
    }
    for key, label in labels.items():
        value = receipt.get(key)
        shown = f"{value:.3g}" if isinstance(value, float) else value
        print(f"{label:<20}{len(value) if isinstance(value, list | dict) else shown}")
