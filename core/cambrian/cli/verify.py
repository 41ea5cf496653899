"""cambrian verify"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from cambrian.cli.export import show_receipt


def verify(
    folder: Annotated[
        str, typer.Argument(help="An exported folder; with --golden, a name from `cambrian list`.")
    ],
    golden: Annotated[
        bool,
        typer.Option(
            "--golden",
            help="Hold a named model's published weights, as read here, to what their reference "
            "implementation computed; with torch, on the CPU by default.",
        ),
    ] = False,
    provider: Annotated[str, typer.Option(help="auto, cpu, cuda; strict if named.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the receipt as JSON.")] = False,
) -> None:
    """Prove an exported folder on this machine, without torch.

    Hashes every file, repeats the stored sweep and compares. Exit code 1 if anything differs.

    \b
    Examples:
      cambrian verify runs/bard-onnx
      cambrian verify runs/bard-onnx --provider cuda --json
      cambrian verify --golden my-model
    """
    from cambrian import api

    if golden:
        receipt, show = verify_named(folder, provider), show_golden
    else:
        receipt, show = api.verify(folder, device=provider), show_receipt
    if as_json:
        print(json.dumps(receipt))
        return
    show(receipt)


def verify_named(name: str, provider: str) -> dict[str, Any]:
    """Fetch and hold a model to its golden values."""
    from cambrian import api
    from cambrian.cli.progress import Downloads

    device = "cpu" if provider == "auto" else provider
    with Downloads() as downloads:
        return api.verify_golden(name, device=device, report=downloads.report)


def show_golden(receipt: Any) -> None:
    """Print what was compared, with what, and how near it came."""
    where = f"the largest {receipt['ids']} of '{receipt['output']}'"
    for label, shown in {
        "weights": receipt["weights"],
        "reference": receipt["source"],
        "compared": f"{where} at position {receipt['position']}",
        "largest difference": f"{receipt['max_abs_diff']:.3g}",
        "allowed": f"{receipt['allowed']:.3g}",
        "provider": receipt["provider"],
    }.items():
        print(f"{label:<20}{shown}")
