"""What a lock holds, what it refuses, and what becomes of it when the project changes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from huggingface_hub import constants

from cambrian import hub, pulling
from cambrian.cli import lock as cli
from cambrian.errors import BrokenFile, CambrianError, UsageError
from cambrian.hub import LOCK, Location, Lock, Pin, Wish, client
from cambrian.hub.lock import LIMIT, PinnedFile
from cambrian.testing.hub import Fault, LoopbackHub, Repository

URI = "hf://alice/tiny"
WEIGHTS = bytes(300)
FILES: dict[str, bytes | Path | None] = {
    "config.json": b'{"model_type": "gpt2"}',
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
}
LIST = "GET hub /api/models/"


class Revisions(NamedTuple):
    """A repository's commits, and the tags v1 and v2 on the first two."""

    repo: Repository
    v1: str
    v2: str
    main: str


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """A Hub, and this process in a project's folder beside it."""
    with LoopbackHub() as running:
        for name, value in {
            "ENDPOINT": running.endpoint,
            "HF_HUB_CACHE": str(tmp_path / "home" / "hub"),
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, name, value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        for kind in ("CACHE", "CONFIG"):
            monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind))
        (tmp_path / "project").mkdir()
        monkeypatch.chdir(tmp_path / "project")
        yield running


@pytest.fixture
def revisions(server: LoopbackHub) -> Revisions:
    repo = server.create("alice/tiny", license="mit")
    commits: list[str] = []
    for number in (1, 2, 3):
        commits.append(repo.commit({**FILES, "note.md": b"%d" % number}))
        repo.tag(f"v{number}")
    return Revisions(repo, *commits)


def project(declared: str) -> None:
    """Go on in a new folder with another cambrian.toml: a process reads each folder's once."""
    before, folder = Path(LOCK).resolve(), Path(tempfile.mkdtemp(dir=Path.cwd().parent))
    (folder / "cambrian.toml").write_text(declared)
    os.chdir(folder)
    if before.exists():
        shutil.copyfile(before, LOCK)


def declare(address: str, files: str = "{}") -> None:
    """The project's only model is at this address."""
    project(f'[models.mine]\narchitecture = "gpt"\nweights = "{address}"\nfiles = {files}\n')


def held(name: str) -> tuple[str, str]:
    """(commit, requested) of what is pinned."""
    pin = Lock.read(Path(LOCK)).models[name]
    return pin.revision, pin.requested


def forget(line: str) -> None:
    """Take a line out of the lock, as an edit or an older version would."""
    lines = Path(LOCK).read_text().splitlines(keepends=True)
    kept = [each for each in lines if not each.startswith(line)]
    assert len(kept) < len(lines)
    Path(LOCK).write_text("".join(kept))


def test_an_address_is_pinned_anew_at_another_revision(revisions: Revisions) -> None:
    pulling.lock([f"{URI}@v1"])
    assert held(URI) == (revisions.v1, "v1")
    pulling.lock([f"{URI}@v2"])
    assert held(URI) == (revisions.v2, "v2")
    for target in (f"{URI}@v1", f"{URI}@{revisions.v1}", f"{URI}@main"):
        with pytest.raises(CambrianError, match=f"which was v2 then.*cambrian lock {URI}@"):
            pulling.plan_pull(target)
    for target in (f"{URI}@v2", f"{URI}@{revisions.v2}", URI):
        found = pulling.plan_pull(target, locked=True)
        assert found.listing.location.revision == revisions.v2, target


def test_an_upgrade_stays_on_the_tag_or_branch_that_was_locked(revisions: Revisions) -> None:
    pulling.lock([f"{URI}@v1"])
    pulling.lock()
    pulling.lock([URI], upgrade=True)
    assert held(URI) == (revisions.v1, "v1")
    revisions.repo.tag("v1", revisions.v2)
    pulling.lock()
    assert held(URI) == (revisions.v1, "v1")
    pulling.lock(upgrade=True)
    assert held(URI) == (revisions.v2, "v1")


def test_a_project_that_names_another_revision_is_told_so(revisions: Revisions) -> None:
    declare(f"{URI}@v1")
    pulling.lock()
    for other, commit in (("@v2", revisions.v2), ("", revisions.main), ("@v1", revisions.v1)):
        declare(f"{URI}{other}")
        with pytest.raises(CambrianError, match="Run `cambrian lock` and look"):
            pulling.check_lock()
        with pytest.raises(CambrianError, match="Run `cambrian lock` and look"):
            pulling.plan_pull("mine", locked=True)
        pulling.lock()
        assert held("mine") == (commit, other[1:] or "main")
        pulling.check_lock()
    declare(f"{URI}@{revisions.v1}")  # the same, said more exactly
    pulling.check_lock()


def test_two_revisions_of_one_address_are_no_lock(revisions: Revisions) -> None:
    with pytest.raises(UsageError, match="holds one revision of hf://alice/tiny"):
        pulling.lock([f"{URI}@v1", f"{URI}@v2"])
    assert not Path(LOCK).exists()


def test_an_older_lock_is_read_and_fits(revisions: Revisions) -> None:
    declare(f"{URI}@v1")
    pulling.lock()
    forget("requested")
    assert held("mine") == (revisions.v1, "")
    before, after = pulling.lock()
    assert before == after == pulling.check_lock()
    pulling.lock(upgrade=True)
    assert held("mine") == (revisions.v1, "v1")


@pytest.mark.parametrize("revision", ["../../x", "a/../b", "", "-x", "v1\\n"])
def test_a_lock_leads_nowhere_else(revision: str, tmp_path: Path) -> None:
    pin = Pin("a/b", "1" * 40, {}, requested="v1")
    text = Lock({"x": pin}).text().replace('"v1"', f'"{revision}"')
    (tmp_path / LOCK).write_text(text)
    with pytest.raises(BrokenFile, match=r"is no lock .*requested"):
        Lock.read(tmp_path / LOCK)


def test_the_cache_alone_is_never_locked(
    server: LoopbackHub, revisions: Revisions, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hub.fetch(Location("alice/tiny")).folder
    (folder / "tokenizer.json").unlink()
    (folder / "model.safetensors").resolve().write_bytes(WEIGHTS[:100])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(client.Unreachable, match="HF_HUB_OFFLINE is set"):
        pulling.lock([URI])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server.fault(LIST, Fault(status=503, retry_after=999), times=None)
    with pytest.raises(client.Unreachable, match="status 503"):
        pulling.lock([URI])
    assert not Path(LOCK).exists()
    server.heal()
    pulling.lock([URI])
    pin = Lock.read(Path(LOCK)).models[URI]
    assert pin.files.keys() == FILES.keys() and pin.files["model.safetensors"].size == len(WEIGHTS)
    server.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    pulling.lock([URI])  # what is locked already needs nobody
    assert server.requests == []


@pytest.mark.usefixtures("revisions")
def test_weights_that_the_registry_does_not_expect_are_not_locked() -> None:
    declare(URI, f'{{"model.safetensors" = "{"a" * 64}"}}')
    with pytest.raises(BrokenFile, match=r"model\.safetensors of .* is expected"):
        pulling.lock()
    assert not Path(LOCK).exists()
    declare(URI, f'{{"model.safetensors" = "{hashlib.sha256(WEIGHTS).hexdigest()}"}}')
    pulling.lock()
    pulling.check_lock()


LOCKER = "import sys; from cambrian import pulling; pulling.lock(sys.argv[1:])"


def test_locks_at_the_same_time_lose_nothing(server: LoopbackHub, tmp_path: Path) -> None:
    """Each process has read the lock before any other writes it."""
    names = [f"alice/m{number}" for number in range(3)]
    for name in names:
        server.create(name).commit(FILES)
    server.fault(LIST, Fault(delay=1.5), times=None)
    environment = {
        **server.environment(tmp_path / "home"),
        **{f"XDG_{kind}_HOME": str(tmp_path / kind) for kind in ("CACHE", "CONFIG")},
    }
    running = [
        subprocess.Popen([sys.executable, "-c", LOCKER, f"hf://{name}"], env=environment)
        for name in names
    ]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert sorted(Lock.read(Path(LOCK)).models) == [f"hf://{name}" for name in names]


@pytest.mark.usefixtures("revisions")
def test_a_lock_waits_for_who_changes_it() -> None:
    thread = threading.Thread(target=pulling.lock, args=([URI],))
    with hub.alone(Path(LOCK)):
        thread.start()
        thread.join(1)
        assert thread.is_alive() and not Path(LOCK).exists()
    thread.join(10)
    assert sorted(Lock.read(Path(LOCK)).models) == [URI]


@pytest.mark.usefixtures("revisions")
@pytest.mark.parametrize("left", ["", '[models.mine]\narchitecture = "gpt"\n'])
def test_what_the_project_no_longer_has_goes(left: str, capsys: pytest.CaptureFixture[str]) -> None:
    declare(URI)
    pulling.lock([f"{URI}@v1"])
    project(left)
    for refused in (pulling.check_lock, pulling.locked_names):
        with pytest.raises(CambrianError, match=r"pins mine, .* Run `cambrian lock` to drop"):
            refused()
    project("[[")  # who knows what it meant to say
    with pytest.raises(CambrianError):
        pulling.lock()
    assert "mine" in Lock.read(Path(LOCK)).models
    project(left)
    cli.lock(as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert (list(said["models"]), said["changed"], said["dropped"]) == ([URI], [], ["mine"])
    assert list(pulling.check_lock().models) == [URI]
    assert pulling.locked_names() == [URI]


@pytest.mark.usefixtures("revisions")
@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "tokenizer.json", ""])
def test_a_pin_that_lost_files_is_refused(lost: str) -> None:
    digest = hashlib.sha256(b"{}").hexdigest()
    declare(URI, f'{{"tokenizer.json" = "{digest}"}}')
    pulling.lock()
    whole = Path(LOCK).read_text()
    forget(f'"{lost}')
    for refused in (pulling.check_lock, lambda: pulling.plan_pull("mine")):
        with pytest.raises(CambrianError, match="lacks files that 'mine' needs"):
            refused()
    pulling.lock()
    assert Path(LOCK).read_text() == whole


@pytest.mark.parametrize("names", [["model.bin", "config.json"], ["model.safetensors"], []])
def test_what_is_no_whole_model(names: list[str]) -> None:
    pin = pin_of(names)
    assert not pin.whole(("model.safetensors",))


@pytest.mark.parametrize(
    "names",
    [
        ["config.json", "model.safetensors"],
        ["config.json", "model.safetensors.index.json"],
        ["config.json", "pytorch_model.bin"],
        ["config.json", "pytorch_model.bin.index.json"],
        ["manifest.json"],
    ],
)
def test_what_is_a_whole_model(names: list[str]) -> None:
    assert pin_of(names).whole(("model.safetensors",))


def pin_of(names: list[str]) -> Pin:
    """A pin of files of these names."""
    return Pin("a/b", "1" * 40, {name: PinnedFile(1, "a" * 64) for name in names})


def too_long() -> list[str]:
    """A name that a disk takes, and a lock does not."""
    return ["x" * 230 + ".json"]


def too_many() -> list[str]:
    """More files than a lock has room for."""
    return [f"{number}.json" for number in range(LIMIT // 100)]


@pytest.mark.parametrize("names", [too_long, too_many])
def test_what_could_not_be_read_again_is_not_written(
    names: Callable[[], list[str]], tmp_path: Path
) -> None:
    file = tmp_path / LOCK
    Lock({"small": pin_of(["a"])}).write(file)
    good = file.read_bytes()
    with pytest.raises(CambrianError, match="could not be read again"):
        Lock({"large": pin_of(names())}).write(file)
    assert file.read_bytes() == good


@pytest.mark.usefixtures("revisions")
def test_a_lock_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "CACHE" / "cambrian").mkdir(parents=True)
    (tmp_path / "CACHE" / "cambrian" / "locks").write_text("")
    with pytest.raises(CambrianError, match=r"Cannot write .*cambrian\.lock"):
        pulling.lock([URI])


def test_pin_without_a_registry_takes_the_hubs_word(revisions: Revisions) -> None:
    pin = hub.pin(Location("alice/tiny", "v1"), Wish())
    assert (pin.revision, pin.requested, pin.license) == (revisions.v1, "v1", "mit")


def test_a_size_that_is_wrong_is_refused_whether_cached_or_not(revisions: Revisions) -> None:
    pulling.lock([URI])
    good = Path(LOCK).read_text()
    wrong = good.replace(f"size = {len(WEIGHTS)},", "size = 299,")
    for text, outcome in ((wrong, "refused"), (good, ""), (wrong, "refused"), (good, "")):
        Path(LOCK).write_text(text)
        if not outcome:
            assert pulling.pull(URI).location.revision == revisions.main
            continue
        with pytest.raises(BrokenFile, match="has 300 bytes, but the lock says 299"):
            pulling.pull(URI)
