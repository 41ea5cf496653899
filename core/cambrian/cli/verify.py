"""cambrian verify"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cambrian.cli.export import show_receipt


def verify(
    folder: Annotated[Path, typer.Argument(help="An exported folder.")],
    provider: Annotated[str, typer.Option(help="auto, cpu, cuda; strict if named.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the receipt as JSON.")] = False,
) -> None:
    """Prove an exported folder on this machine, without torch.

    Hashes every file, repeats the stored sweep and compares. Exit code 1 if anything differs.

    \b
    Examples:
      cambrian verify runs/bard-onnx
      cambrian verify runs/bard-onnx --provider cuda --json
    """
    from cambrian import api

    receipt = api.verify(folder, device=provider)
    if as_json:
        print(json.dumps(receipt))
        return
    show_receipt(receipt)
