"""What tests of the Hub's cache share: a small repository, and looks at the disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download

from cambrian import caching
from cambrian.caching import Plan
from cambrian.hub import Location, Wish, client, fetch
from cambrian.hub.layout import Layout
from cambrian.testing.hub import Fault, LoopbackHub, Repository
from loopback import BLOB, WEIGHTS, point_at

FILES = {"config.json": b"{}", "vocab.txt": b"a\nb\n", "model.safetensors": WEIGHTS}
URI = "hf://acme/tiny"


def enter(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Point this process's client at the Hub, with caches and a working directory in `folder`."""
    point_at(hub, monkeypatch, folder)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(client, "WAITS", [0.01])
    monkeypatch.chdir(folder)


def tiny(hub: LoopbackHub) -> Repository:
    """A repository with a model in it."""
    made = hub.create("acme/tiny")
    made.commit({**FILES, "README.md": b"not needed"})
    return made


def layout(name: str = "acme/tiny") -> Layout:
    """A repository's part of the cache."""
    return Layout.of(name)


def tree(folder: Path) -> dict[str, object]:
    """All that is in a folder: links by their targets, files by their bytes."""
    return {
        str(path): path.readlink() if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
        if ".locks" not in path.parts
    }


def theirs(hub: LoopbackHub) -> Path:
    """A repository that the client fetched, and nobody else."""
    hub.create("bob/theirs").commit({"config.json": b"{}", "model.safetensors": b"theirs"})
    snapshot_download("bob/theirs", cache_dir=constants.HF_HUB_CACHE, endpoint=hub.endpoint)
    return layout("bob/theirs").folder


def prune(*targets: str, everything: bool = False) -> Plan:
    """Plan, and carry the plan out."""
    return caching.prune(caching.plan(targets, everything=everything), lambda removal: None)


def went(done: Plan) -> list[str]:
    """What was deleted, by its kind."""
    return [removal.what for removal in done.removals]


def half(hub: LoopbackHub, wish: Wish | None = None) -> Path:
    """A download that was cut off."""
    hub.fault(BLOB, Fault(cut_after=100_000))
    hub.fault(BLOB, Fault(status=503), times=None)
    with pytest.raises(client.Unreachable):
        fetch(Location("acme/tiny"), wish)
    hub.heal()
    (part,) = (layout().folder / "blobs").glob("*.cambrian.incomplete")
    return part


def cambrian(hub: LoopbackHub, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `cambrian cache` in a process of its own."""
    environment = {**hub.environment(folder / "home"), "XDG_CACHE_HOME": str(folder / "xdg")}
    done = subprocess.run(
        [sys.executable, "-m", "cambrian", "cache", *words],
        env={**environment, "XDG_CONFIG_HOME": os.devnull},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def truncate(path: Path) -> None:
    """Take the last byte."""
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    """Change a byte and nothing else."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
