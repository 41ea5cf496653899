"""What Cambrian keeps on the disk: listed and hashed again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cached import (
    FILES,
    URI,
    cambrian,
    enter,
    flip,
    layout,
    prune,
    theirs,
    tiny,
    truncate,
    went,
)
from cambrian import caching
from cambrian.caching import Cache, Plan
from cambrian.errors import CambrianError, UsageError
from cambrian.files import cache_folder
from cambrian.hub import Location, fetch, pin, plan
from cambrian.hub.record import record_path
from cambrian.hub.snapshot import silent
from cambrian.testing.hub import LoopbackHub, Repository
from loopback import SIZE


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """A Hub, this process's client pointed at it, caches and a working directory of the test's."""
    with LoopbackHub() as running:
        enter(running, monkeypatch, tmp_path)
        yield running


@pytest.fixture
def repo(hub: LoopbackHub) -> Repository:
    return tiny(hub)


def test_bytes_count_once_and_others_are_told_apart(hub: LoopbackHub, repo: Repository) -> None:
    first = fetch(Location("acme/tiny"))
    repo.commit({"vocab.txt": b"longer\n"})
    second = fetch(Location("acme/tiny"))
    theirs(hub)
    found = Cache.scan()
    assert {held.location for held in found.commits} == {first.location, second.location}
    assert all(held.verified and len(held.files) == 3 for held in found.commits)
    sizes = {held.commit: held.bytes for held in found.commits}
    assert sizes[first.location.revision] == SIZE + 2 + 4
    records = sum(path.stat().st_size for path in found.records)
    assert found.bytes == SIZE + 2 + 4 + 7 + records
    assert caching.disk.others(found.root, found.hub_files) == (2, len(b"{}theirs"))


def test_a_commit_is_told_with_who_names_it(
    hub: LoopbackHub, repo: Repository, tmp_path: Path
) -> None:
    found = fetch(Location("acme/tiny"))
    pinned, branch = f'"{found.location}"', f'"{URI}"'
    (tmp_path / "cambrian.toml").write_text(
        f'[models.pinned]\narchitecture = "gpt"\nweights = {pinned}\n'
        f'[models.branch]\narchitecture = "gpt"\nweights = {branch}\n'
        '[models.other]\narchitecture = "gpt"\nweights = "hf://acme/other"\n'
    )
    (tmp_path / "cambrian.lock").write_text(
        f'[models."branch"]\nrepo = "acme/tiny"\nrevision = "{repo.head}"\nfiles = {{}}\n'
    )
    (cache_folder("tokens") / "key").mkdir(parents=True)
    (cache_folder("tokens") / "key" / "train.bin").write_bytes(bytes(77))
    done = cambrian(hub, tmp_path, "--json")
    facts = json.loads(done.stdout)
    (row,) = facts["commits"]
    assert sorted(row["names"]) == ["branch", "branch (lock)", "pinned"]
    assert (row["address"], row["verified"], row["refs"]) == (str(found.location), True, ["main"])
    assert facts["folders"]["tokens"] == 77
    assert facts["bytes"] == SIZE + 6 + 77 + facts["folders"]["verified"]
    assert len(facts["free"]) == 1, "both caches are on one disk"
    assert abs(next(iter(facts["free"].values())) - shutil.disk_usage(tmp_path).free) < 1 << 30
    shown = cambrian(hub, tmp_path).stdout
    assert f"{URI}@{repo.head[:12]}  300,006  3 " in shown
    assert shown.splitlines()[1].endswith("  yes       pinned, branch, branch (lock)")
    assert f"together: {facts['bytes']:,} bytes" in shown


def test_nothing_at_all(hub: LoopbackHub, tmp_path: Path) -> None:
    assert cambrian(hub, tmp_path).stdout.startswith("together: 0 bytes\n")
    assert caching.check(Cache.scan(), silent) == []
    assert prune() == prune(everything=True) == Plan((), ())
    assert not (tmp_path / "home" / "hub").exists() and not cache_folder("").exists()


def test_wrong_requests(hub: LoopbackHub, tmp_path: Path) -> None:
    done = cambrian(hub, tmp_path, "verify", URI)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: Cambrian keeps nothing of {URI} here; see `cambrian cache`.\n"
    with pytest.raises(UsageError, match="exclude each other"):
        prune(URI, everything=True)
    with pytest.raises(UsageError, match="'gpt-demo' has no weights on a Hub"):
        prune("gpt-demo")


@pytest.mark.parametrize("name", ["vocab.txt", "model.safetensors"])
@pytest.mark.parametrize(
    ("harm", "why"),
    [(truncate, "bytes instead of"), (flip, "its hash is another"), (Path.unlink, "is missing")],
)
def test_damage_is_found(
    hub: LoopbackHub, repo: Repository, harm: Any, why: str, name: str
) -> None:
    found = fetch(Location("acme/tiny"))
    assert caching.check(Cache.scan(), silent) == []
    harm((found.folder / name).resolve())
    (damage,) = caching.check(Cache.scan(), silent)
    assert damage.what == f"{found.location}: {name}" and why in damage.why
    assert damage.remedy == f"cambrian pull {found.location} --verify"
    fetch(found.location, rehash=True)
    assert caching.check(Cache.scan(), silent) == [], "what is advised must help"


@pytest.mark.parametrize("text", ["{", None])
def test_without_a_record_a_contents_name_is_its_hash(
    hub: LoopbackHub, repo: Repository, text: str | None
) -> None:
    found = fetch(Location("acme/tiny"))
    file = record_path(layout(), repo.head)
    file.unlink() if text is None else file.write_text(text)
    (held,) = Cache.scan().commits
    assert held.files.keys() == FILES.keys() and not held.verified
    assert caching.check(Cache.scan(), silent) == []
    for name in ("vocab.txt", "model.safetensors"):
        truncate((found.folder / name).resolve())
    whys = [damage.why for damage in caching.check(Cache.scan(), silent)]
    assert whys == ["its hash is another than it should be"] * 2
    assert went(prune()) == ([] if text is None else ["record"])
    assert went(prune(URI)) == ["commit"] and not layout().folder.exists()


def test_verify_says_what_to_do_and_is_exit_1(
    hub: LoopbackHub, repo: Repository, tmp_path: Path
) -> None:
    found = fetch(Location("acme/tiny"))
    hub.create("acme/other").commit(FILES)
    other = fetch(Location("acme/other"))
    flip((found.folder / "model.safetensors").resolve())
    broken = cache_folder("converted") / f"{'a' * 64}.safetensors"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no tensors")
    hub.clear()
    done = cambrian(hub, tmp_path, "verify")
    assert (done.returncode, hub.requests) == (1, [])
    assert done.stdout.splitlines() == [
        f"{found.location}: model.safetensors: its hash is another than it should be; "
        f"run: cambrian pull {found.location} --verify",
        f"{broken}: it is damaged; run: rm {broken}",
    ]
    assert done.stderr == "error: 2 damaged or missing; 7 files were hashed.\n"
    facts = json.loads(cambrian(hub, tmp_path, "verify", URI, "--json").stdout)
    assert (facts["files"], len(facts["damaged"])) == (3, 1)
    assert caching.check(Cache.scan().of([f"hf://acme/other@{other.location.revision[:7]}"]),
                         silent) == []  # fmt: skip


def test_a_dry_run_of_pull_sees_a_truncated_file(hub: LoopbackHub, repo: Repository) -> None:
    found = fetch(Location("acme/tiny"))
    assert plan(found.location).missing == ()
    truncate((found.folder / "model.safetensors").resolve())
    assert [file.name for file in plan(found.location).missing] == ["model.safetensors"]


def test_a_fetch_returns_no_folder_that_lost_a_file(hub: LoopbackHub, repo: Repository) -> None:
    def delete(event: Any) -> None:
        if event.get("file") == "model.safetensors":
            (layout().snapshot(repo.head) / "config.json").resolve().unlink(missing_ok=True)

    with pytest.raises(CambrianError, match="while it was fetched; fetch it again"):
        fetch(Location("acme/tiny"), report=delete)
    assert (fetch(Location("acme/tiny")).folder / "config.json").is_file()


def test_what_a_look_leaves_behind_is_ours(hub: LoopbackHub, repo: Repository) -> None:
    plan(Location("acme/tiny"))
    (held,) = Cache.scan().commits
    assert held.files.keys() == {"config.json"} and not held.strangers and not held.verified
    pin(Location("acme/tiny"))
    (held,) = Cache.scan().commits
    assert held.files.keys() == {"config.json", "vocab.txt"}
    fetch(Location("acme/tiny"))
    assert Cache.scan().commits[0].strangers == ()
    assert went(prune(URI)) == ["commit"] and not layout().folder.exists()


def test_the_remedy_names_the_entry(hub: LoopbackHub, repo: Repository, tmp_path: Path) -> None:
    found = fetch(Location("acme/tiny"))
    (tmp_path / "cambrian.toml").write_text(
        f'[models.mine]\narchitecture = "gpt"\nweights = "{found.location}"\n'
    )
    truncate((found.folder / "vocab.txt").resolve())
    (damage,) = caching.check(Cache.scan(), silent)
    assert damage.remedy == "cambrian pull mine --verify"
