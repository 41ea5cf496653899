"""cambrian cache"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cambrian.cli import text
from cambrian.cli.commands import new_app
from cambrian.cli.completion import complete_model
from cambrian.errors import CambrianError

if TYPE_CHECKING:
    from cambrian.caching import Cache, Plan, Removal

app = new_app()

Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME...",
        help="Names from `cambrian list`, or hf://owner/repo[@revision].",
        autocompletion=complete_model,
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def cache(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Show, verify and free what Cambrian keeps on this disk.

    Commits in the Hub's cache that Cambrian pulled, who names them, downloads that were cut off,
    weights that were converted, prepared data. Bytes count once, however many commits share them.

    \b
    Examples:
      cambrian cache
      cambrian cache verify gpt2
      cambrian cache prune --dry-run
      cambrian cache prune hf://google-t5/t5-small
    """
    if ctx.invoked_subcommand is not None:
        return
    from cambrian.caching import Cache

    facts = facts_of(Cache.scan())
    if as_json:
        text.as_json(facts)
    else:
        show(facts)


@app.command()
def verify(names: Names = None, as_json: AsJson = False) -> None:
    """Hash again what Cambrian keeps; needs no network.

    Exit code 1 if a file is damaged or missing; each has a line that says what to do.

    \b
    Example:
      cambrian cache verify && echo whole
    """
    from cambrian import caching
    from cambrian.cli.progress import Downloads

    found = caching.Cache.scan()
    found = found.of(names) if names else found
    with Downloads("checking") as progress:
        damages = caching.check(found, progress.report)
    paths = {path for held in found.commits for path in held.files.values()}
    count = len(paths) + len(found.converted)
    if as_json:
        text.as_json({"files": count, "damaged": [vars(damage) for damage in damages]})
    else:
        for damage in damages:
            remedy = text.printable(damage.remedy)
            typer.echo(f"{text.printable(damage.what)}: {damage.why}; run: {remedy}")
    if damages:
        raise CambrianError(f"{len(damages)} damaged or missing; {count} files were hashed.")
    if not as_json:
        typer.echo(f"{count} files are as they should be")


@app.command()
def prune(
    names: Names = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Everything of Cambrian's, commits and prepared data too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would go; delete nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Free the disk of what Cambrian keeps.

    Without names: only downloads that were cut off, records of commits that are gone, converted
    weights whose source is not in the cache, and what killed processes left. No commit goes.
    With names: their commits too. An address without a revision means all commits of it.

    Contents that another commit needs stay, and so does what is being downloaded. A commit into
    which another program fetched files first, or others, is left to that program: it only loses
    Cambrian's protection from `hf cache prune`. Whatever goes is fetched or made again when it is
    needed.

    \b
    Examples:
      cambrian cache prune
      cambrian cache prune gpt2-medium hf://google-t5/t5-small@df1b051c49625 --dry-run
      cambrian cache prune --all
    """
    from cambrian import caching

    def say(removal: Removal) -> None:
        """A line for what went."""
        if not as_json:
            typer.echo(line(removal))

    done = caching.plan(names or (), everything=everything)
    if dry_run:
        for removal in done.removals:
            say(removal)
    else:
        done = caching.prune(done, say)
    conclude(done, dry_run, as_json)


def conclude(done: Plan, dry_run: bool, as_json: bool) -> None:
    """Say what stays and how much is freed; CambrianError if something could not be deleted."""
    if as_json:
        text.as_json(pruned(done, dry_run))
    else:
        for name, why in done.stays:
            typer.echo(f"stays: {text.printable(name)}: {text.printable(why)}", err=True)
        typer.echo(f"{done.bytes:,} bytes {'would be freed' if dry_run else 'freed'}")
    if done.failed:
        name, why = done.failed[0]
        more = f" and {len(done.failed) - 1} more" if len(done.failed) > 1 else ""
        raise CambrianError(f"Cannot delete {name} ({why}){more}. Look at who owns the files.")


def line(removal: Removal) -> str:
    """One removal for people."""
    return f"{removal.what} {text.printable(removal.name)}: {removal.bytes:,} bytes"


def pruned(done: Plan, dry_run: bool) -> dict[str, Any]:
    """What went, for a script."""
    return {
        "dry_run": dry_run,
        "bytes": done.bytes,
        "deleted": [{"what": r.what, "name": r.name, "bytes": r.bytes} for r in done.removals],
        "stays": [{"name": name, "why": why} for name, why in done.stays],
        "failed": [{"name": name, "why": why} for name, why in done.failed],
    }


def facts_of(found: Cache) -> dict[str, Any]:
    """All that is kept, and what else is on the disks."""
    from cambrian.caching import files_below, named
    from cambrian.files import cache_folder
    from cambrian.hub import cache as disk

    names = named(found.commits)
    count, size = disk.others(found.root, found.hub_files)
    return {
        "hub": str(found.root),
        "commits": [
            {
                "address": str(held.location),
                "bytes": held.bytes,
                "files": len(held.files),
                "used": held.used,
                "verified": held.verified,
                "refs": list(held.refs),
                "names": names[held.location],
                "others": list(held.strangers),
            }
            for held in found.commits
        ],
        "downloads": [
            {"repo": part.layout.repo, "content": part.path.name[:12], "bytes": part.bytes}
            for part in found.parts
        ],
        "folders": {
            "verified": disk.bytes_of(found.records),
            "converted": disk.bytes_of(found.converted),
            "leftovers": disk.bytes_of(found.abandoned),
            **{path.name: disk.bytes_of(files_below(path)) for path in found.others},
        },
        "bytes": found.bytes,
        "not_ours": {"files": count, "bytes": size},
        "free": free([found.root, cache_folder("")]),
    }


def free(folders: list[Path]) -> dict[str, int]:
    """What is free on the disks where folders are, or would be; each disk once."""
    disks: dict[int, tuple[str, int]] = {}
    for folder in folders:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        disks.setdefault(there.stat().st_dev, (str(folder), shutil.disk_usage(there).free))
    return dict(disks.values())


def show(facts: dict[str, Any]) -> None:
    """The same for people."""
    rows = [
        (
            row["address"][:-28],  # as many of the commit's digits as tell it from others
            f"{row['bytes']:,}",
            str(row["files"]),
            time.strftime("%Y-%m-%d", time.localtime(row["used"])) if row["used"] else "never",
            "yes" if row["verified"] else "no",
            ", ".join(row["names"]) or "nothing",
        )
        for row in facts["commits"]
    ]
    if rows:
        text.table(["COMMIT", "BYTES", "FILES", "LAST USED", "VERIFIED", "NAMED BY"], rows)
        typer.echo()
    for part in facts["downloads"]:
        what = f"hf://{part['repo']}: {part['content']}"
        typer.echo(f"unfinished download {what}: {part['bytes']:,} bytes")
    for name, size in facts["folders"].items():
        if size:
            typer.echo(f"{text.printable(name)}: {size:,} bytes")
    typer.echo(f"together: {facts['bytes']:,} bytes")
    other = facts["not_ours"]
    typer.echo(
        f"other programs in {facts['hub']}: {other['files']} files, {other['bytes']:,} bytes"
    )
    for folder, size in facts["free"].items():
        typer.echo(f"free on the disk of {folder}: {size:,} bytes")
