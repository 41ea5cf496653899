"""What Cambrian keeps on the disk: listed, hashed again and freed, and nothing else touched."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, hf_hub_download, scan_cache_dir, snapshot_download
from huggingface_hub.utils import WeakFileLock

from cambrian import caching
from cambrian.caching import Cache, Plan
from cambrian.errors import NotFound, UsageError
from cambrian.files import cache_folder
from cambrian.hub import Location, Wish, client, fetch, plan
from cambrian.hub.layout import PART, Layout
from cambrian.hub.record import Record, record_path
from cambrian.hub.snapshot import silent
from cambrian.testing.hub import Fault, LoopbackHub, Repository

SIZE = 300_000
WEIGHTS = random.Random(0).randbytes(SIZE)
FILES = {"config.json": b"{}", "vocab.txt": b"a\nb\n", "model.safetensors": WEIGHTS}
URI = "hf://acme/tiny"
BLOB = r"GET cdn .*model\.safetensors"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """A Hub, this process's client pointed at it, caches and a working directory of the test's."""
    with LoopbackHub() as running:
        for name, value in {
            "ENDPOINT": running.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": running.endpoint
            + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "home" / "hub"),
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        monkeypatch.setattr(client, "WAITS", [0.01])
        monkeypatch.chdir(tmp_path)
        yield running


@pytest.fixture
def repo(hub: LoopbackHub) -> Repository:
    made = hub.create("acme/tiny")
    made.commit({**FILES, "README.md": b"not needed"})
    return made


def layout(name: str = "acme/tiny") -> Layout:
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
    return caching.prune(caching.plan(targets, everything=everything), lambda removal: None)


def went(done: Plan) -> list[str]:
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


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


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
    for path in (old, new):
        path.write_bytes(b"1234567")
    os.utime(old, (0, 0))
    records = {record_path(Layout(Path(elsewhere), "acme/far"), far.location.revision),
               record_path(layout("acme/kept"), kept.location.revision)}  # fmt: skip
    lost = record_path(layout("acme/gone"), gone.location.revision).stat().st_size
    done = prune()
    assert sorted(went(done)) == ["converted", "download", "leftover", "leftover", "record",
                                  "record"]  # fmt: skip
    assert (done.stays, done.bytes) == ((), spent + 1000 + 7 + lost + len("{") + len(repo.head))
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


def test_a_dry_run_of_pull_sees_a_truncated_file(hub: LoopbackHub, repo: Repository) -> None:
    found = fetch(Location("acme/tiny"))
    assert plan(found.location).missing == ()
    truncate((found.folder / "model.safetensors").resolve())
    assert [file.name for file in plan(found.location).missing] == ["model.safetensors"]
