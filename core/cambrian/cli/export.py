"""cambrian export"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cambrian.cli.completion import complete_model
from cambrian.config import parse_assignment


def export(
    name: Annotated[
        str, typer.Argument(help="A checkpoint or a named model.", autocompletion=complete_model)
    ],
    out: Annotated[
        Path | None, typer.Argument(help="Folder to write. [default: NAME-FORMAT]")
    ] = None,
    kind: Annotated[str, typer.Option("--format", "-f", help="Which exporter.")] = "onnx",
    precision: Annotated[
        str, typer.Option(help="Number format of the graphs: float32, float16, int8, int4.")
    ] = "float32",
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", help="What to measure int8 and int4 on; repeatable."),
    ] = None,
    limits: Annotated[
        list[str] | None,
        typer.Option(
            "--limit", metavar="FIGURE=CHANGE", help="How much int8 or int4 may cost; repeatable."
        ),
    ] = None,
    provider: Annotated[str, typer.Option(help="Device to verify on: auto, cpu, cuda.")] = "cpu",
    force: Annotated[bool, typer.Option("--force", help="Replace what is in the folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the receipt as JSON.")] = False,
) -> None:
    """Export a model and prove that the export equals it.

    An export that fails the proof is no export: exit code 1, and its files stay in OUT.rejected.
    What int8 and int4 cost is measured on held-out data: --data, or else what the model's own
    training held out; int4 is fitted to the rest, and takes a part of --data for that. It may
    be a loss of 0.02, an accuracy of -0.01, a BLEU of -0.5, unless --limit says otherwise.

    \b
    Examples:
      cambrian export runs/bard
      cambrian export gpt2 gpt2-onnx --json
      cambrian export runs/bard --format onnx-ort --precision int8
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
            data=data or (),
            limits=dict(map(parse_assignment, limits or ())),
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
    from cambrian.loading import export_beside

    path = Path(name.removeprefix("hf://"))
    return export_beside(path, kind) if path.is_dir() else Path("runs") / f"{path.name}-{kind}"


def show_receipt(receipt: Any) -> None:
    """Print what verification found."""
    labels = {
        "cases": "cases",
        "max_abs_diff": "largest difference",
        "argmax_agreement": "argmax agreement",
        "provider": "provider",
    }
    for key in receipt.get("quality", {}).get("tolerated", {}):
        before, after = (receipt["quality"][side].get(key) for side in ("model", "export"))
        if before is not None:
            print(f"{key:<20}{after:.4g} (the model's: {before:.4g})")
    for key, label in labels.items():
        value = receipt.get(key)
        shown = f"{value:.3g}" if isinstance(value, float) else value
        print(f"{label:<20}{len(value) if isinstance(value, list | dict) else shown}")
