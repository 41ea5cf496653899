"""cambrian pull"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from cambrian.cli import text
from cambrian.cli.completion import complete_model
from cambrian.errors import UsageError


def pull(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME...",
            help="Names from `cambrian list`, or hf://owner/repo@revision.",
            autocompletion=complete_model,
            show_default=False,
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Another commit, branch or tag than is registered.")
    ] = None,
    locked: Annotated[
        bool, typer.Option("--locked", help="Only what cambrian.lock holds; all of it by default.")
    ] = False,
    rehash: Annotated[
        bool, typer.Option("--verify", help="Hash every file again, whatever was verified before.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show files, bytes, licence; fetch no weights.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fetch models from the Hugging Face Hub, verified.

    They lie in the Hub's own cache; every file is hashed before it is used. A download that was
    cut off goes on where it stopped. HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE and
    HF_ENDPOINT count as they do for `hf`.

    \b
    Examples:
      cambrian pull gpt2
      cambrian pull hf://google-bert/bert-base-uncased --dry-run
      cambrian pull --locked
    """
    from cambrian import pulling

    names = names or (pulling.locked_names() if locked else [])
    if not names:
        raise UsageError("Say what to pull: cambrian pull NAME (see `cambrian list`).")
    if revision is not None and len(names) > 1:
        raise UsageError("--revision is of one model; pull them one by one.")
    where: dict[str, Any] = {"revision": revision, "locked": locked}
    results: list[dict[str, Any]] = []
    try:
        for name in names:
            results.append(planned(name, where) if dry_run else fetched(name, where, rehash))
            if not as_json:
                show(results[-1])
    finally:  # what came before one that failed is there
        if as_json and results:
            text.as_json({"models": results})


def planned(name: str, where: Mapping[str, Any]) -> dict[str, Any]:
    """What would be fetched."""
    from cambrian import pulling
    from cambrian.cli.progress import Downloads

    with Downloads() as downloads:
        plan = pulling.plan_pull(name, **where, report=downloads.report)
    missing = {file.name for file in plan.missing}
    return {
        "name": name,
        "address": str(plan.listing.location),
        "license": plan.listing.license or None,
        "gated": plan.listing.gated,
        "bytes": sum(file.size for file in plan.missing),
        "files": [
            {"name": file.name, "bytes": file.size, "cached": file.name not in missing}
            for file in plan.needed
        ],
    }


def fetched(name: str, where: Mapping[str, Any], rehash: bool) -> dict[str, Any]:
    """Fetch it; what was fetched."""
    from cambrian import pulling
    from cambrian.cli.progress import Downloads

    with Downloads() as downloads:
        found = pulling.pull(name, **where, rehash=rehash, report=downloads.report)
    return {
        "name": name,
        "address": str(found.location),
        "license": found.license or None,
        "folder": str(found.folder),
        "files": [
            {"name": file, "bytes": held.size, "sha256": held.sha256}
            for file, held in sorted(found.files.items())
        ],
    }


def show(facts: dict[str, Any]) -> None:
    """The same for people."""
    typer.echo(facts["address"])
    typer.echo(f"licence: {text.printable(facts['license'] or 'not stated')}")
    if "folder" in facts:
        typer.echo(f"{len(facts['files'])} files, each verified by its hash, in")
        typer.echo(facts["folder"])
        return
    if facts["gated"]:
        typer.echo("gated: its terms must be accepted on its page first")
    rows = [
        (file["name"], f"{file['bytes']:,}", "yes" if file["cached"] else "no")
        for file in facts["files"]
    ]
    text.table(["FILE", "BYTES", "CACHED"], rows)
    typer.echo(f"{facts['bytes']:,} bytes to fetch")
