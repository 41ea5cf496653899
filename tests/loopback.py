"""A Hub on loopback with one small model, and this process's client pointed at it."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
from huggingface_hub import constants

from cambrian.hub import Location, Snapshot, client
from cambrian.testing.hub import LoopbackHub, User

SIZE = 300_000
WEIGHTS = random.Random(0).randbytes(SIZE)
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
NEEDED: dict[str, bytes | Path | None] = {
    "config.json": b'{"model_type": "tiny"}\n',
    "tokenizer.json": b"{}\n",
    "vocab.txt": b"a\nb\n",
    "model.safetensors": WEIGHTS,
}
BLOB = r"GET cdn .*model\.safetensors"
LIST = "GET hub /api/models/"
MAIN = Location("acme/tiny")


def point_at(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Have this process use the Hub, with a cache and records in `folder`."""
    for name, value in {
        "ENDPOINT": hub.endpoint,
        "HF_HUB_CACHE": str(folder / "home" / "hub"),
        "HF_TOKEN_PATH": str(folder / "no-token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "xdg"))
    monkeypatch.setattr(client, "WAITS", [0.01] * 3)
    hub.users = {"hf_bob": User("bob", accepted={"acme/tiny"}), "hf_eve": User("eve")}


def contents(snapshot: Snapshot) -> dict[str, bytes]:
    """What is in a folder, by name."""
    return {path.name: path.read_bytes() for path in snapshot.folder.iterdir()}
