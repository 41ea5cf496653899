"""What Cambrian keeps on the disk: freed, and nothing else touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download, scan_cache_dir
from huggingface_hub.utils import WeakFileLock

from cached import (
    FILES,
    URI,
    cambrian,
    enter,
    half,
    layout,
    prune,
    theirs,
    tiny,
    tree,
    went,
)
from cambrian import caching
from cambrian.caching import Cache
from cambrian.errors import NotFound
from cambrian.files import cache_folder
from cambrian.hub import Location, Wish, fetch
from cambrian.hub.layout import PART, Layout
from cambrian.hub.record import Record, record_path
from cambrian.hub.snapshot import silent
from cambrian.testing.hub import Fault, LoopbackHub, Repository
from loopback import BLOB, SIZE, WEIGHTS


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """A Hub, this process's client pointed at it, caches and a working directory of the test's."""
    with LoopbackHub() as running:
        enter(running, monkeypatch, tmp_path)
        yield running


@pytest.fixture
def repo(hub: LoopbackHub) -> Repository:
    return tiny(hub)


def test_by_default_only_what_is_of_no_use_goes(
    hub: LoopbackHub, repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (theirs(hub) / "refs" / "cambrian-v2").write_text("1" * 40)  # a branch of that name
    foreign = tree(layout("bob/theirs").folder)
    elsewhere = str(tmp_path / "elsewhere")
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", elsewhere)
        hub.create("acme/far").commit(FILES)
        far = fetch(Location("acme/far"))
    hub.create("acme/kept").commit({"config.json": b"{}", "pytorch_model.bin": b"whatever"})
    kept = fetch(Location("acme/kept"))
    hub.create("acme/gone").commit(FILES)
    gone = fetch(Location("acme/gone"))
    shutil.rmtree(gone.folder)
    spent = half(hub).stat().st_size  # a broken connection takes some of what came with it
    converted = cache_folder("converted")
    converted.mkdir(parents=True)
    used = converted / f"{kept.files['pytorch_model.bin'].sha256}.safetensors"
    used.write_bytes(b"x")
    (converted / f"{'b' * 64}.safetensors").write_bytes(bytes(1000))
    (cache_folder("verified") / "0.json").write_text("{")
    old, new = (converted / f".x.safetensors.partial-{name}" for name in ("old", "new"))
    spoilt = layout("acme/kept").folder / "refs" / ".main.partial-x"
    for path in (old, new, spoilt):
        path.write_bytes(b"1234567")
    for path in (old, spoilt):
        os.utime(path, (0, 0))
    records = {record_path(Layout(Path(elsewhere), "acme/far"), far.location.revision),
               record_path(layout("acme/kept"), kept.location.revision)}  # fmt: skip
    lost = record_path(layout("acme/gone"), gone.location.revision).stat().st_size
    done = prune()
    assert sorted(went(done)) == [
        "converted", "download", "leftover", "leftover", "leftover", "record", "record"
    ]  # fmt: skip
    assert (done.stays, done.bytes) == ((), spent + 1000 + 2 * 7 + lost + len("{") + len(repo.head))
    assert set(converted.iterdir()) == {used, new}
    assert set(cache_folder("verified").iterdir()) == records
    assert {held.location.repo for held in Cache.scan().commits} == {"acme/kept", "acme/tiny"}
    assert not list((layout("acme/gone").folder / "refs").glob("cambrian-*"))
    assert tree(layout("bob/theirs").folder) == foreign
    assert went(prune()) == []


def test_what_is_shared_stays(hub: LoopbackHub, repo: Repository) -> None:
    foreign = tree(theirs(hub))
    first = fetch(Location("acme/tiny"))
    repo.commit({"vocab.txt": b"longer\n"})
    second = fetch(Location("acme/tiny"))
    done = prune(str(first.location)[: -40 + 12])
    assert (went(done), done.bytes, done.stays) == (["commit"], 4, ())
    assert [held.location for held in Cache.scan().commits] == [second.location]
    assert caching.check(Cache.scan(), silent) == [] and not first.folder.exists()
    assert not record_path(layout(), first.location.revision).exists()
    assert scan_cache_dir(constants.HF_HUB_CACHE).warnings == []
    hub.clear()
    assert fetch(second.location) == second and hub.requests == []
    assert prune(URI).bytes == SIZE + 2 + 7
    assert not layout().folder.exists() and tree(layout("bob/theirs").folder) == foreign
    assert scan_cache_dir(constants.HF_HUB_CACHE).warnings == []
    assert fetch(second.location).files == {
        name: fetch(second.location).files[name] for name in FILES
    }, "what went comes again"


def test_two_commits_free_what_they_share_once(hub: LoopbackHub, repo: Repository) -> None:
    for text in (b"1", b"22"):
        repo.commit({"vocab.txt": text})
        fetch(Location("acme/tiny"))
    assert caching.plan([URI]).bytes == SIZE + 2 + 1 + 2


def test_a_commit_of_another_program_loses_our_protection_alone(
    hub: LoopbackHub, repo: Repository
) -> None:
    found = fetch(Location("acme/tiny"))
    home = constants.HF_HUB_CACHE
    hf_hub_download("acme/tiny", "README.md", cache_dir=home, endpoint=hub.endpoint)
    before = tree(layout().folder)
    done = prune(everything=True)
    assert done.stays == (
        (str(found.location), "another program has files in it (README.md)"),
    ) and done.bytes < 2000  # fmt: skip
    gone = before.keys() - tree(layout().folder).keys()
    assert [Path(path).name for path in gone] == [f"cambrian-{repo.head[:12]}"]
    assert Cache.scan().commits == () and not list(cache_folder("verified").iterdir())


def test_a_commit_that_only_the_client_fetched_is_not_ours(
    hub: LoopbackHub, repo: Repository
) -> None:
    theirs(hub)
    with pytest.raises(NotFound, match="keeps nothing of hf://bob/theirs"):
        prune("hf://bob/theirs")
    before = tree(layout("bob/theirs").folder)
    fetch(Location("acme/tiny"))
    assert went(prune(everything=True)) == ["commit"]
    assert tree(layout("bob/theirs").folder) == before and not layout().folder.exists()


def test_a_dry_run_deletes_nothing(hub: LoopbackHub, repo: Repository, tmp_path: Path) -> None:
    half(hub)
    (cache_folder("tokens")).mkdir(parents=True)
    (cache_folder("tokens") / "x").write_bytes(b"123")
    before = tree(tmp_path)
    dry = cambrian(hub, tmp_path, "prune", "--all", "--dry-run")
    facts = json.loads(cambrian(hub, tmp_path, "prune", "--all", "--dry-run", "--json").stdout)
    assert tree(tmp_path) == before
    assert [row["what"] for row in facts["deleted"]] == ["download", "commit", "cache"]
    assert dry.stdout.endswith(f"{facts['bytes']:,} bytes would be freed\n")
    real = cambrian(hub, tmp_path, "prune", "--all")
    assert real.stdout == dry.stdout.replace("would be freed", "freed")
    assert not layout().folder.exists() and not list(cache_folder("").glob("tokens"))


def test_what_is_being_downloaded_stays(hub: LoopbackHub, repo: Repository, tmp_path: Path) -> None:
    first = fetch(Location("acme/tiny"))
    repo.commit({"model.safetensors": WEIGHTS[::-1]})
    hub.fault(BLOB, Fault(stall=60, stall_after=1000), times=None)
    code = f"from cambrian.hub import fetch, parse_uri; fetch(parse_uri('{URI}'))"
    environment = {**hub.environment(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "xdg")}
    child = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        end = time.monotonic() + 20
        while not Cache.scan().parts:
            assert time.monotonic() < end, "it never began"
            time.sleep(0.02)
        for done in (prune(), prune(URI), prune(everything=True)):
            assert not {"commit", "download"} & set(went(done)) and done.stays
        assert first.folder.exists() and Cache.scan().parts
    finally:
        child.kill()
        child.wait()
    assert "download" in went(prune()) and not Cache.scan().parts


def test_a_download_that_begins_meanwhile_stays(hub: LoopbackHub, repo: Repository) -> None:
    part = half(hub)
    planned = caching.plan()
    lock = layout().locks / part.name.replace(PART, ".lock")
    with WeakFileLock(lock):
        done = caching.prune(planned, lambda removal: None)
    assert (went(done), len(done.stays), part.exists()) == ([], 1, True)


def test_the_client_understands_what_is_left_half_done(hub: LoopbackHub, repo: Repository) -> None:
    repo.commit({"config.json": None})
    half(hub, Wish(only=("model.safetensors",)))
    (kept,) = scan_cache_dir(constants.HF_HUB_CACHE).repos
    assert [revision.commit_hash for revision in kept.revisions] == [repo.head]


def test_what_came_before_a_cut_is_ours(hub: LoopbackHub, repo: Repository) -> None:
    part = half(hub)
    (held,) = Cache.scan().commits
    assert {"config.json"} <= held.files.keys() <= {"config.json", "vocab.txt"}
    assert not held.verified
    assert scan_cache_dir(constants.HF_HUB_CACHE).warnings == []
    (layout().folder / "refs" / ".main.partial-x").write_text("12")  # by a killed process
    assert sorted(went(prune(URI))) == ["commit", "download"]
    assert not part.exists() and not layout().folder.exists()


def test_a_link_that_leads_elsewhere_is_not_followed(
    hub: LoopbackHub, repo: Repository, tmp_path: Path
) -> None:
    found = fetch(Location("acme/tiny"))
    mine = tmp_path / "mine.json"
    mine.write_bytes(b"{}")
    (found.folder / "config.json").unlink()
    (found.folder / "config.json").symlink_to(mine)
    record = Record.read(layout(), repo.head)
    assert record is not None
    outside = os.path.relpath(mine, found.folder)
    replace(record, files={**record.files, outside: record.files["vocab.txt"]}).write(layout())
    prune(everything=True)
    assert mine.exists() and not found.folder.exists()


def test_what_cannot_be_deleted_is_said(hub: LoopbackHub, repo: Repository, tmp_path: Path) -> None:
    cache_folder("").mkdir(parents=True)
    cache_folder("verified").write_bytes(b"no folder")
    (cache_folder("") / "tokens").mkdir()
    found = fetch(Location("acme/tiny"))
    done = cambrian(hub, tmp_path, "prune", "--all")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "0 bytes freed")
    said = f"error: Cannot delete {found.location} (Not a directory). Look at who owns the files.\n"
    assert done.stderr == said
    assert not (cache_folder("") / "tokens").exists(), "the rest goes nevertheless"


def test_what_is_pulled_after_the_plan_keeps_its_contents(
    hub: LoopbackHub, repo: Repository
) -> None:
    first = fetch(Location("acme/tiny"))
    planned = caching.plan([str(first.location)])
    repo.commit({"vocab.txt": b"longer\n"})
    second = fetch(Location("acme/tiny"))
    done = caching.prune(planned, lambda removal: None)
    assert (went(done), done.bytes) == (["commit"], len(FILES["vocab.txt"]))
    assert caching.check(Cache.scan(), silent) == [] and not first.folder.exists()
    assert layout().commit("main") == second.location.revision
    planned = caching.plan([URI])
    with WeakFileLock(next(layout().locks.glob("*.lock"))):
        done = caching.prune(planned, lambda removal: None)
    assert done.stays == ((str(second.location), caching.RUNNING),) and second.folder.exists()


def test_one_prune_is_enough_and_an_unmounted_cache_costs_nothing(
    hub: LoopbackHub, repo: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs(hub)
    repo.commit({"model.safetensors": None, "pytorch_model.bin": b"whatever"})
    found = fetch(Location("acme/tiny"))
    converted = cache_folder("converted") / f"{found.files['pytorch_model.bin'].sha256}.safetensors"
    converted.parent.mkdir(parents=True)
    converted.write_bytes(b"x")
    Path(constants.HF_HUB_CACHE).rename(tmp_path / "elsewhere")
    Path(constants.HF_HUB_CACHE).mkdir()
    assert went(prune()) == [] and converted.exists()
    Path(constants.HF_HUB_CACHE).rmdir()
    (tmp_path / "elsewhere").rename(constants.HF_HUB_CACHE)
    shutil.rmtree(layout().folder)
    assert went(prune()) == ["record", "converted"] and went(prune()) == []


def test_what_another_program_fetched_first_stays(hub: LoopbackHub, repo: Repository) -> None:
    home = constants.HF_HUB_CACHE
    hf_hub_download("acme/tiny", "config.json", cache_dir=home, endpoint=hub.endpoint)
    before = tree(layout().folder)
    half(hub)
    found = fetch(Location("acme/tiny"))
    assert Cache.scan().commits[0].strangers == ("config.json",)
    assert len(prune(URI).stays) == 1 and found.folder.exists()
    assert before.items() <= tree(layout().folder).items()
    assert not layout().keeps(repo.head)
