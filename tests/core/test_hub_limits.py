"""What stops a pull or a push, as a user meets it: Ctrl-C, a full disk, one without links, and an
address that others can listen to."""

from __future__ import annotations

import ctypes
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from cambrian import load_registry
from cambrian.checkpoint import save_description, save_weights
from cambrian.discovery import config_folder
from cambrian.errors import UsageError
from cambrian.files import cache_folder
from cambrian.testing import built, prepared
from cambrian.testing.hub import Fault, LoopbackHub, User

SIZE = 300_000
WEIGHTS = random.Random(0).randbytes(SIZE)
FILES: dict[str, bytes | Path | None] = {
    "config.json": b'{"model_type": "gpt2"}',
    "model.safetensors": WEIGHTS,
}
URI = "hf://acme/tiny"
BLOB = r"GET cdn .*model\.safetensors"
KEPT = "interrupted; what has come is kept, and the next attempt goes on there"
MAKE_SYM = 1 << 12  # LANDLOCK_ACCESS_FS_MAKE_SYM; the numbers are the same on every machine
CREATE_RULESET, RESTRICT_SELF, NO_NEW_PRIVS = 444, 446, 38


class World(NamedTuple):
    """A Hub with a repository, and what a child process needs to see it."""

    hub: LoopbackHub
    folder: Path
    environment: dict[str, str]

    def start(
        self, *words: str, wrap: tuple[str, ...] = (), before: Any = None, **more: str
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*wrap, sys.executable, "-m", "cambrian", *words],
            env={**self.environment, **more},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=before,  # noqa: PLW1509
        )

    def run(self, *words: str, **more: Any) -> tuple[int, list[str]]:
        """The exit code, and the lines of standard error."""
        return ended(self.start(*words, **more))

    def kept(self, pattern: str) -> list[Path]:
        return [path for path in (self.folder / "home").rglob(pattern) if path.is_file()]


def open_address(world: World) -> str:
    """The Hub's, by what is this machine but does not say so."""
    return f"http://0.0.0.0:{urlsplit(world.hub.endpoint).port}"


def ended(child: subprocess.Popen[str]) -> tuple[int, list[str]]:
    err = child.communicate(timeout=60)[1]
    assert "Traceback" not in err
    return child.returncode, err.splitlines()


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)


def made_in(folder: Path) -> Path:
    """A model of ours."""
    spec = load_registry().models["gpt"]
    data, _ = prepared(spec)
    save_description(folder, spec, data.config, data.processor, "0")
    save_weights(folder, spec, data.config, built(spec, data.config))
    return folder


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with LoopbackHub() as hub:
        hub.users = {"hf_alice": User("alice", can_write=True)}
        hub.create("acme/tiny").commit(FILES)
        homes = {f"XDG_{kind}_HOME": str(tmp_path / kind) for kind in ("CACHE", "CONFIG")}
        environment = {**hub.environment(tmp_path / "home", "hf_alice"), **homes}
        yield World(hub, tmp_path, environment)


def test_an_address_that_others_hear_is_warned_of_once(world: World) -> None:
    address = open_address(world)
    code, lines = world.run("pull", URI, f"{URI}@main", HF_ENDPOINT=address)
    assert code == 0 and len(lines) == 1
    assert lines[0].startswith(f"warning: HF_ENDPOINT is {address}, which is not https")
    code, lines = world.run("pull", URI, "--dry-run", HF_ENDPOINT=address)
    assert code == 0 and [line[:8] for line in lines] == ["warning:"]
    assert world.run("pull", URI) == (0, [])
    assert world.run("pull", URI, HF_ENDPOINT=address, HF_HUB_OFFLINE="1") == (0, [])


def test_a_pull_that_is_interrupted_ends_at_once_and_goes_on(world: World) -> None:
    world.hub.fault(BLOB, Fault(stall=60, stall_after=100_000))
    child = world.start("pull", URI)
    until(lambda: sum(path.stat().st_size for path in world.kept("*.incomplete")) > 90_000)
    time.sleep(0.3)  # now it has all that came, and waits
    begin = time.monotonic()
    child.send_signal(signal.SIGINT)
    assert ended(child) == (130, [KEPT])
    assert time.monotonic() - begin < 5, "it waited for the server"
    assert world.kept("model.safetensors") == []
    assert world.run("pull", URI) == (0, [])
    assert "range" in world.hub.matching(BLOB)[-1].headers
    assert [path.read_bytes() for path in world.kept("model.safetensors")] == [WEIGHTS]


def test_a_push_that_is_interrupted_sends_nothing_twice(world: World) -> None:
    model = made_in(world.folder / "model")
    words = ("push", str(model), "hf://alice/mine")
    world.hub.fault("PUT cdn", Fault(delay=60))
    child = world.start(*words)
    until(lambda: world.hub.matching("PUT cdn"))
    until(lambda: world.hub.matching("PUT cdn")[0].received)
    child.send_signal(signal.SIGINT)
    code, lines = ended(child)
    assert code == 130 and lines[-1].startswith("interrupted; the commit is made as a whole or not")
    assert "model.safetensors" not in world.hub.repository("alice/mine").files()
    assert world.run(*words)[0] == 0
    assert "model.safetensors" in world.hub.repository("alice/mine").files()
    assert len(world.hub.matching("PUT cdn")) == 1
    code, lines = world.run(*words, HF_ENDPOINT=open_address(world))
    assert (code, len([line for line in lines if "is not https" in line])) == (0, 1), lines


def test_a_disk_that_is_too_small_is_said_before_anything_comes(world: World) -> None:
    mount = 'mount -t tmpfs -o size=200k tmpfs "$0" && exec "$@"'
    disk = world.folder / "disk"
    disk.mkdir()
    alone = ("unshare", "--user", "--mount", "--map-root-user", "sh", "-c", mount, str(disk))
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], check=False).returncode:
        pytest.skip("this system lets nobody mount a disk of his own (unshare)")
    code, lines = world.run("pull", URI, wrap=alone, HF_HUB_CACHE=str(disk))
    assert code == 1 and len(lines) == 1 and "needs 300,000 bytes more" in lines[0]
    assert f"the disk of {disk} has 196,608 free" in lines[0] and "HF_HUB_CACHE" in lines[0]
    assert world.hub.matching(BLOB) == []


def test_a_write_that_fails_leaves_a_part_and_no_whole(world: World) -> None:
    limit = 100_000  # the system refuses a longer file, in the middle of a write

    def short() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    code, lines = world.run("pull", URI, before=short)
    assert code == 1 and len(lines) == 1, lines
    assert lines[0].startswith(f"error: Cannot write {URI}@main into ") and "too large" in lines[0]
    assert world.kept("model.safetensors") == []
    assert [path.stat().st_size for path in world.kept("*.incomplete")] == [limit]
    assert world.run("pull", URI) == (0, [])
    assert world.hub.matching(BLOB)[-1].headers["range"] == f"bytes={limit}-"
    assert [path.read_bytes() for path in world.kept("model.safetensors")] == [WEIGHTS]


def read_only(folder: Path) -> tuple[str, ...]:
    """What to begin a command with that shall not write there, not even as root."""
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    alone = ("unshare", "--user", "--mount", "--map-root-user", "sh", "-c", mount, str(folder))
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], check=False).returncode:
        pytest.skip("this system lets nobody mount a disk of his own (unshare)")
    return alone


def test_a_cache_that_can_only_be_read_serves(world: World) -> None:
    shared = world.folder / "home"
    code = f"from huggingface_hub import snapshot_download as s; s('{URI[5:]}')"
    subprocess.run([sys.executable, "-c", code], env=world.environment, check=True)
    world.hub.clear()
    pinned = f"{URI}@{world.hub.repository('acme/tiny').head}"
    alone = read_only(shared)
    for address in (URI, pinned):
        assert world.run("pull", address, wrap=alone) == (0, [])
    world.hub.clear()
    assert world.run("pull", pinned, wrap=alone) == (0, [])
    assert world.hub.requests == []
    assert not list(shared.rglob("cambrian-*"))
    world.hub.repository("acme/tiny").commit({"model.safetensors": b"new"})
    code, lines = world.run("pull", URI, wrap=alone)
    assert code == 1 and len(lines) == 1 and "Read-only file system" in lines[0]
    [blob] = {path.resolve() for path in world.kept("model.safetensors")}
    with blob.open("r+b") as file:
        file.write(b"??")
    code, lines = world.run("pull", pinned, wrap=alone)
    assert code == 1 and "is damaged in the cache" in lines[0], lines
    assert lines[1].startswith("error: Cannot write") and len(lines) == 2


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("HF_TOKEN", "hf_\u00e9", "The token holds characters that none has"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "abc", "HF_HUB_DOWNLOAD_TIMEOUT and"),
        ("ALL_PROXY", "foo://x", "names a proxy that cannot be one"),
        ("HF_ENDPOINT", "localhost:9", "HF_ENDPOINT is 'localhost:9', which is no address"),
        ("HF_ENDPOINT", "https://", "HF_ENDPOINT is 'https:', which is no address"),
        ("HF_ENDPOINT", "http://a:b", "HF_ENDPOINT is 'http://a:b', which is no address"),
    ],
)
def test_an_environment_that_cannot_be(world: World, name: str, value: str, said: str) -> None:
    model = made_in(world.folder / "model")
    for words in (("pull", URI), ("push", str(model), "hf://alice/mine")):
        code, lines = world.run(*words, **{name: value})
        lines = [line for line in lines if not line.startswith("note: ")]  # of the card
        assert code == 2 and len(lines) == 1 and said in lines[0], lines
    assert world.hub.requests == []


def test_without_a_home_it_is_said_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    for variable, folder in (("XDG_CACHE_HOME", cache_folder), ("XDG_CONFIG_HOME", own_config)):
        monkeypatch.delenv(variable, raising=False)
        with pytest.raises(UsageError, match=f"no home folder .*; set HOME, or {variable}"):
            folder("")
        monkeypatch.setenv(variable, str(tmp_path))
        assert folder("").is_relative_to(tmp_path)


def own_config(name: str) -> Path:
    return config_folder() / name


def no_links() -> None:
    """Forbid this process, and what it becomes, to make symbolic links: Linux's landlock."""
    libc = ctypes.CDLL(None, use_errno=True)
    rules = libc.syscall(CREATE_RULESET, struct.pack("Q", MAKE_SYM), ctypes.c_size_t(8), 0)
    if libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(RESTRICT_SELF, rules, 0):
        raise OSError(ctypes.get_errno(), "no landlock")


def landlock(folder: Path) -> bool:
    """Whether this system can: its kernel has landlock, and did not switch it off."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import os; os.symlink('nowhere', 'link')"],
            cwd=folder,
            preexec_fn=no_links,
            capture_output=True,
            check=False,
        )
    except (subprocess.SubprocessError, AttributeError):
        return False
    return b"PermissionError" in done.stderr


def test_without_links_copies_do(world: World) -> None:
    if not landlock(world.folder):
        pytest.skip("this system cannot forbid a process to make links (landlock)")
    assert world.run("pull", URI, before=no_links) == (0, [])
    [copy] = world.kept("model.safetensors")
    assert not copy.is_symlink() and copy.read_bytes() == WEIGHTS
    world.hub.clear()
    pinned = f"{URI}@{world.hub.repository('acme/tiny').head}"
    for address in (URI, pinned):
        assert world.run("pull", address, before=no_links, HF_HUB_OFFLINE="1") == (0, [])
    assert world.run("pull", pinned, before=no_links) == (0, [])
    with copy.open("ab") as file:
        file.write(b"edited")
    assert world.run("pull", URI, before=no_links, HF_HUB_OFFLINE="1") == (0, [])
    assert copy.read_bytes() == WEIGHTS and world.hub.requests == []
    assert {path.name for path in copy.parent.iterdir()} == FILES.keys()
