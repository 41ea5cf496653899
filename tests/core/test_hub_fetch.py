"""Fetching from a Hub that stands on loopback: what comes, what is believed, what is kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, scan_cache_dir, snapshot_download

from cambrian.errors import BrokenFile, CambrianError, UsageError
from cambrian.hub import Location, Lock, Wish, client, fetch, pin, plan
from cambrian.hub.layout import Layout
from cambrian.testing.hub import Fault, LoopbackHub, Repository
from loopback import BLOB, LIST, MAIN, NEEDED, SHA256, SIZE, WEIGHTS, contents, point_at

OTHERS = dict.fromkeys(
    (".gitattributes", "pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "onnx/config.json",
     "model.fp16.safetensors", "pytorch_model.bin.index.json", "a.py"), b"not needed"
)  # fmt: skip


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """A Hub, and this process's client pointed at it, with a cache and records of the test's."""
    with LoopbackHub() as running:
        point_at(running, monkeypatch, tmp_path)
        yield running


@pytest.fixture
def repo(hub: LoopbackHub) -> Repository:
    """acme/tiny, of which the latest commit holds more than a model needs."""
    made = hub.create("acme/tiny", license="mit")
    made.commit({**NEEDED, **OTHERS})
    return made


def blob() -> Path:
    return Layout.of(MAIN.repo).folder / "blobs" / SHA256


def kept(pattern: str) -> list[str]:
    """The contents and pointers in the cache that have such a name."""
    folder = Layout.of(MAIN.repo).folder
    return [path.name for kind in ("blobs", "snapshots") for path in (folder / kind).rglob(pattern)]


def fetching(hub: LoopbackHub, tmp_path: Path) -> subprocess.Popen[bytes]:
    """A process of its own, with the same cache."""
    code = f"from cambrian.hub import fetch, parse_uri; fetch(parse_uri('{MAIN}'))"
    env = {**hub.environment(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "xdg")}
    return subprocess.Popen([sys.executable, "-c", code], env=env)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)


@pytest.mark.parametrize("by", ["main", "v1", "a/branch", "commit"])
def test_what_is_needed_comes_alone(hub: LoopbackHub, repo: Repository, by: str) -> None:
    repo.tag("v1")
    repo.branch("a/branch")
    head = repo.head
    found = fetch(Location("acme/tiny", head if by == "commit" else by))
    assert contents(found) == NEEDED
    assert found.location == Location("acme/tiny", head) and found.license == "mit"
    expected = {n: hashlib.sha256(d).hexdigest() for n, d in NEEDED.items() if type(d) is bytes}
    assert {name: file.sha256 for name, file in found.files.items()} == expected
    assert len(hub.requests) == 1 + len(NEEDED) + 1, "a listing, the files, one redirect"
    there = snapshot_download(MAIN.repo, revision=found.location.revision if by == "commit" else by,
                              cache_dir=constants.HF_HUB_CACHE, local_files_only=True)  # fmt: skip
    assert Path(there) == found.folder
    [held] = next(iter(scan_cache_dir(constants.HF_HUB_CACHE).repos)).revisions
    assert f"cambrian-{head[:12]}" in held.refs, "hf cache prune would delete it"


def test_shards_and_bin_only_where_nothing_else_is(hub: LoopbackHub) -> None:
    shards = {f"model-0000{i}-of-00002.safetensors": WEIGHTS[:i] for i in (1, 2)}
    index = json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}).encode()
    sharded = {"config.json": b"{}", "model.safetensors.index.json": index, **shards}
    twins = {"pytorch_model.bin": b"x", "model-00003-of-00003.safetensors": b"x"}
    hub.create("acme/sharded").commit({**sharded, **twins})
    assert contents(fetch(Location("acme/sharded"))) == sharded
    hub.create("acme/bin").commit({"config.json": b"{}", "pytorch_model.bin": b"x", "a.h5": b"y"})
    assert fetch(Location("acme/bin")).files.keys() == {"config.json", "pytorch_model.bin"}
    hub.create("acme/odd").commit({"config.json": b"{}", "tf_model.h5": b"x"})
    with pytest.raises(CambrianError, match=r"no weights that Cambrian reads .*holds tf_model\.h5"):
        fetch(Location("acme/odd"))
    outside = json.dumps({"weight_map": {"a": "../../../outside.safetensors"}}).encode()
    hub.create("acme/evil").commit({"config.json": b"{}", "model.safetensors.index.json": outside})
    with pytest.raises(BrokenFile, match="shards lie beside their index"):
        fetch(Location("acme/evil"))


def test_a_pin_asks_nobody_and_a_branch_moves_on(hub: LoopbackHub, repo: Repository) -> None:
    first = fetch(MAIN)
    hub.clear()
    assert fetch(first.location) == first and fetch(first.location, Wish(hashes={
        "model.safetensors": SHA256})) == first  # fmt: skip
    assert hub.requests == []
    repo.commit({"vocab.txt": b"c\n"})
    second = fetch(MAIN)
    assert second.location.revision == repo.head
    assert contents(second) == {**NEEDED, "vocab.txt": b"c\n"} and contents(first) == NEEDED
    assert hub.bytes_sent(BLOB) == 0, "the same weights came twice"


@pytest.mark.parametrize("damage", [WEIGHTS[:-1], WEIGHTS[:9] + b"?" + WEIGHTS[10:], b""])
def test_damage_on_the_disk_is_mended(hub: LoopbackHub, repo: Repository, damage: bytes) -> None:
    found = fetch(MAIN)
    hub.clear()
    blob().write_bytes(damage)
    notices: list[object] = []
    again = fetch(found.location, report=lambda event: notices.append(event.get("notice")))
    assert contents(again) == NEEDED and hub.bytes_sent(BLOB) == SIZE
    assert "model.safetensors is damaged in the cache; fetching it anew" in notices


def test_rehash_finds_what_left_no_trace(hub: LoopbackHub, repo: Repository) -> None:
    found = fetch(MAIN)
    before = blob().stat()
    with blob().open("r+b") as file:
        file.write(b"????")
    os.utime(blob(), ns=(before.st_atime_ns, before.st_mtime_ns))
    assert contents(fetch(found.location)) != NEEDED, "the record is a stat, not a hash"
    assert contents(fetch(found.location, rehash=True)) == NEEDED


@pytest.mark.parametrize(
    ("line", "name"), [(BLOB, "model.safetensors"), (r"GET hub .*vocab\.txt", "vocab.txt")]
)
def test_damage_on_the_way(hub: LoopbackHub, repo: Repository, line: str, name: str) -> None:
    hub.fault(line, Fault(flip=1), times=None)
    with pytest.raises(BrokenFile, match=rf"{name} of .*came twice with another hash"):
        fetch(MAIN)
    assert len(hub.matching(line)) == 2
    assert kept(name) == [] and kept(repo.files()[name].etag + "*") == []
    hub.heal()
    hub.fault(line, Fault(flip=1))
    assert contents(fetch(MAIN)) == NEEDED


def test_a_cut_connection_goes_on(hub: LoopbackHub, repo: Repository) -> None:
    hub.fault(BLOB, Fault(cut_after=100_000), times=2)
    assert contents(fetch(MAIN)) == NEEDED
    assert ["range" in r.headers for r in hub.matching(BLOB)] == [False, True, True]
    assert SIZE <= hub.bytes_sent(BLOB) < 1.1 * SIZE
    hub.clear()
    blob().unlink()
    hub.fault(BLOB, Fault(cut_after=100_000))
    hub.fault(BLOB, Fault(ignore_range=True))
    assert contents(fetch(MAIN)) == NEEDED and hub.bytes_sent(BLOB) == SIZE + 100_000


def test_a_killed_process_is_continued(hub: LoopbackHub, repo: Repository, tmp_path: Path) -> None:
    big = random.Random(1).randbytes(1_000_000)
    repo.commit({"model.safetensors": big})
    hub.fault(BLOB, Fault(throttle=600_000))
    child = fetching(hub, tmp_path)
    try:
        until(lambda: hub.bytes_sent(BLOB) > 400_000)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert kept("model.safetensors") == []
    assert contents(fetch(MAIN))["model.safetensors"] == big
    assert "range" in hub.matching(BLOB)[-1].headers
    assert hub.bytes_sent(BLOB) < 1.1 * len(big)


def test_two_processes_fetch_once(hub: LoopbackHub, repo: Repository, tmp_path: Path) -> None:
    hub.fault(BLOB, Fault(stall=1.5, stall_after=1000), times=None)
    child = fetching(hub, tmp_path)
    until(lambda: bool(hub.matching(BLOB)))
    notices: list[object] = []
    assert contents(fetch(MAIN, report=lambda event: notices.append(event.get("notice")))) == NEEDED
    assert child.wait() == 0
    assert len(hub.matching(BLOB)) == 1 and hub.bytes_sent(BLOB) == SIZE
    assert "another process fetches model.safetensors; waiting" in notices


@pytest.mark.parametrize("announced", [1000, SIZE + 1])
def test_another_size_than_listed(hub: LoopbackHub, repo: Repository, announced: int) -> None:
    fault = Fault(short=announced) if announced < SIZE else Fault(body=WEIGHTS + b"!")
    hub.fault(BLOB, fault, times=None)
    with pytest.raises(BrokenFile, match=f"with {announced} bytes where the Hub lists {SIZE}"):
        fetch(MAIN)
    assert len(hub.matching(BLOB)) == 1 and kept("model.safetensors") == []


@pytest.mark.parametrize("line", [LIST, BLOB])
def test_too_many_requests_and_server_down(hub: LoopbackHub, repo: Repository, line: str) -> None:
    hub.fault(line, Fault(status=503), times=None)
    with pytest.raises(client.Unreachable, match=r"fails \(status 503\).*Try again later"):
        fetch(MAIN)
    assert len(hub.matching(line)) == 1 + len(client.WAITS)
    hub.heal()
    hub.clear()
    hub.fault(BLOB, Fault(status=429, retry_after=1))
    begin = time.monotonic()
    assert contents(fetch(MAIN)) == NEEDED and time.monotonic() - begin >= 1
    assert len(hub.matching(BLOB)) == 2
    hub.fault(LIST, Fault(status=429, retry_after=3600), times=None)
    hub.create("acme/other")
    with pytest.raises(client.Unreachable, match="asks to wait"):
        fetch(Location("acme/other"))
    assert len(hub.matching("acme/other")) == 1, "nobody waits for an hour"


@pytest.mark.parametrize(
    ("facts", "token", "kind", "said"),
    [
        ({"gated": True}, None, CambrianError, "is gated: accept its terms .* log in with"),
        ({"gated": True}, "hf_eve", CambrianError, "is gated: accept its terms"),
        ({"private": True}, None, UsageError, "does not exist, or is private.* log in"),
        ({"private": True}, "hf_eve", UsageError, "does not exist, or is private"),
        ({}, "hf_wrong", CambrianError, "refuses the token: it is wrong or has expired"),
    ],
)
def test_refusals(
    hub: LoopbackHub,
    monkeypatch: pytest.MonkeyPatch,
    facts: Any,
    token: str | None,
    kind: Any,
    said: str,
) -> None:
    hub.create("acme/tiny", **facts).commit(NEEDED)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(kind, match=said) as caught:
        fetch(MAIN)
    assert type(caught.value) is kind and "\n" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    hub.users["hf_bob"] = dataclasses.replace(hub.users["hf_bob"], orgs=("acme",))
    hub.clear()
    assert contents(fetch(MAIN)) == NEEDED
    assert all(r.headers["authorization"] == "Bearer hf_bob" for r in hub.matching(" hub "))
    assert [r for r in hub.matching(" cdn ") if "authorization" in r.headers] == []


@pytest.mark.parametrize("revision", ["nope", "0" * 40])
def test_a_revision_that_is_not_there(hub: LoopbackHub, repo: Repository, revision: str) -> None:
    with pytest.raises(UsageError, match=f"acme/tiny has no revision '{revision}'"):
        fetch(Location("acme/tiny", revision))
    with pytest.raises(UsageError, match="hf://acme/none does not exist"):
        fetch(Location("acme/none"))


def test_headers_decide_nothing(hub: LoopbackHub, repo: Repository, tmp_path: Path) -> None:
    evil = "../../../../evil"
    headers = {"ETag": evil, "X-Linked-Etag": evil, "X-Repo-Commit": evil, "X-Linked-Size": "1",
               "Content-Disposition": f"attachment; filename={evil}"}  # fmt: skip
    hub.fault("GET", Fault(headers=headers), times=None)
    found = fetch(MAIN)
    assert contents(found) == NEEDED and found.location.revision == repo.head
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]


def listed(**changes: object) -> bytes:
    """A listing of one file with some facts of it changed."""
    file = {"rfilename": "config.json", "size": 2, "blobId": "0" * 40, **changes}
    return json.dumps({"sha": "1" * 40, "siblings": [file]}).encode()


NONSENSE = {
    "html": Fault(body=b"<html>"),
    "deep": Fault(body=b"[" * 100_000),
    "commit": Fault(body=b'{"sha": "../..", "siblings": []}'),
    "size": Fault(body=listed(size=-1)),
    "hash": Fault(body=listed(blobId="../../../../../../../../../../../evil...")),
    "sha256": Fault(body=listed(lfs={"sha256": "x" * 64, "size": 1})),
    "huge": Fault(spaces=client.LISTING_LIMIT + 1),
}


@pytest.mark.parametrize("fault", NONSENSE.values(), ids=NONSENSE.keys())
def test_a_listing_without_sense(hub: LoopbackHub, repo: Repository, fault: Fault) -> None:
    hub.fault(LIST, fault, times=None)
    said = "answers with more than" if fault.spaces else "makes no sense"
    with pytest.raises(BrokenFile, match=said):
        fetch(MAIN)
    assert len(hub.requests) == 1 and not Layout.of("acme/tiny").folder.exists()


def test_offline_and_a_server_that_is_gone(
    hub: LoopbackHub, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(client.Unreachable, match=r"is not in the cache .*HF_HUB_OFFLINE is set"):
        fetch(MAIN)
    assert hub.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    found = fetch(MAIN)
    hub.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(MAIN) == found == fetch(found.location) and hub.requests == []
    blob().write_bytes(b"")
    with pytest.raises(BrokenFile, match=r"is damaged in the cache\. HF_HUB_OFFLINE is set"):
        fetch(MAIN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert fetch(MAIN).location == found.location
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert contents(fetch(MAIN)) == NEEDED
    with pytest.raises(client.Unreachable, match="Check the network and HF_ENDPOINT"):
        fetch(Location("acme/other"))


def test_without_the_hub_a_part_is_no_whole(hub: LoopbackHub, repo: Repository) -> None:
    pinned = Location("acme/tiny", repo.head)
    fetch(pinned, Wish(only=("config.json",)))
    hub.fault(LIST, Fault(status=503), times=None)
    with pytest.raises(CambrianError, match=r"The cache lacks the weights of .*\(status 503\)"):
        fetch(pinned)
    hub.heal()
    fetch(pinned, Wish(only=("config.json", "model.safetensors")))
    hub.fault(LIST, Fault(status=503))
    assert fetch(pinned).files.keys() == {"config.json", "model.safetensors"}
    assert fetch(pinned).files.keys() == NEEDED.keys(), "what was there then is taken for all"
    fetch(pinned, Wish(only=("README.md",)))
    hub.clear()
    assert NEEDED.keys() <= fetch(pinned).files.keys() and hub.requests == []


def test_what_is_not_accepted_costs_no_weights(hub: LoopbackHub, repo: Repository) -> None:
    with pytest.raises(BrokenFile, match=f"{SHA256}, but {'0' * 64} is expected"):
        fetch(MAIN, Wish(hashes={"model.safetensors": "0" * 64}))
    with pytest.raises(BrokenFile, match=r"config\.json of .* is expected"):
        fetch(MAIN, Wish(hashes={"config.json": "0" * 64}))
    assert hub.matching(BLOB) == []

    def refuse(file: Path) -> None:
        assert file.read_bytes() == NEEDED["config.json"]
        raise UsageError("no such architecture")

    with pytest.raises(UsageError, match="no such architecture"):
        fetch(MAIN, Wish(accept=refuse))
    assert hub.matching(BLOB) == []


def test_pin_and_lock(hub: LoopbackHub, repo: Repository, tmp_path: Path) -> None:
    assert {file.name for file in plan(MAIN).missing} == NEEDED.keys() - {"config.json"}
    made = pin(MAIN)
    assert hub.matching(BLOB) == [] and made.license == "mit" and made.files.keys() == NEEDED.keys()
    assert made.hashes["model.safetensors"] == SHA256
    lock = Lock({'odd "name"': made, "hf://acme/tiny": made})
    lock.write(tmp_path / "cambrian.lock")
    read = Lock.read(tmp_path / "cambrian.lock")
    assert read == lock and read.text() == lock.text()
    repo.commit({"vocab.txt": b"new\n", "extra.json": b"{}"})
    held = read.models["hf://acme/tiny"]
    found = fetch(held.location, Wish(hashes=held.hashes, only=tuple(held.files)))
    assert contents(found) == NEEDED and plan(held.location).missing == ()
    (tmp_path / "cambrian.lock").write_text(lock.text().replace(SHA256, "no hash"))
    with pytest.raises(BrokenFile, match="is no lock"):
        Lock.read(tmp_path / "cambrian.lock")
