"""cambrian pull"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cambrian.cli import text
from cambrian.cli.completion import complete_model
from cambrian.errors import UsageError

if TYPE_CHECKING:
    from cambrian.hub import Plan, Snapshot


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
    from cambrian.cli.progress import Downloads

    names = names or (pulling.locked_names() if locked else [])
    if not names:
        raise UsageError("Say what to pull: cambrian pull NAME (see `cambrian list`).")
    if revision is not None and len(names) > 1:
        raise UsageError("--revision is of one model; pull them one by one.")
    results: list[dict[str, Any]] = []
    for name in names:
        with Downloads() as downloads:
            where: dict[str, Any] = {"revision": revision, "locked": locked}
            if dry_run:
                plan = pulling.plan_pull(name, **where, report=downloads.report)
                results.append(planned(name, plan))
            else:
                found = pulling.pull(name, **where, rehash=rehash, report=downloads.report)
                results.append(fetched(name, found))
        if not as_json:
            show(results[-1])
    if as_json:
        text.as_json({"models": results})


def planned(name: str, plan: Plan) -> dict[str, Any]:
    """What would be fetched."""
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


def fetched(name: str, found: Snapshot) -> dict[str, Any]:
    """What was fetched."""
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
