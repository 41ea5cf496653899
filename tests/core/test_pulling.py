"""pull, lock and info as a user runs them, against a loopback Hub and from a project's folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cambrian import load_registry
from cambrian.checkpoint import save_description, save_weights
from cambrian.hub import LOCK, Lock
from cambrian.testing import built, prepared
from cambrian.testing.hub import LoopbackHub, Repository

URI = "hf://alice/tiny"


class Result(NamedTuple):
    code: int
    out: str
    err: str


class World(NamedTuple):
    """A Hub with one model, and an empty project beside it."""

    hub: LoopbackHub
    repo: Repository
    commit: str
    project: Path
    run: Callable[..., Result]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    spec = load_registry().models["gpt"]
    data, _ = prepared(spec)
    save_description(folder, spec, data.config, data.processor, "0")
    save_weights(folder, spec, data.config, built(spec, data.config))
    return folder


@pytest.fixture
def world(model: Path, tmp_path: Path) -> Iterator[World]:
    project = tmp_path / "project"
    project.mkdir()
    with LoopbackHub() as hub:
        repo = hub.create("alice/tiny", license="mit")
        commit = repo.commit({path.name: path for path in model.iterdir()})
        homes = {f"XDG_{kind}_HOME": str(tmp_path / kind) for kind in ("CACHE", "CONFIG")}
        environment = {**hub.environment(tmp_path / "home"), **homes}

        def run(*words: str, **more: str) -> Result:
            done = subprocess.run(
                [sys.executable, "-m", "cambrian", *words],
                env={**environment, **more},
                cwd=project,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert "Traceback" not in done.stderr
            return Result(done.returncode, done.stdout, done.stderr)

        yield World(hub, repo, commit, project, run)


def declare(project: Path, address: str, files: str = "{}") -> None:
    """A project with a model of its own."""
    (project / "cambrian.toml").write_text(
        f'[models.mine]\narchitecture = "gpt"\nweights = "{address}"\nfiles = {files}\n'
    )


def test_a_dry_run_tells_files_and_licence_and_fetches_no_weights(world: World) -> None:
    done = world.run("pull", URI, "--dry-run", "--json")
    (facts,) = json.loads(done.out)["models"]
    weights = next(f for f in facts["files"] if f["name"] == "model.safetensors")
    assert (facts["license"], facts["gated"], weights["cached"]) == ("mit", False, False)
    assert facts["address"] == f"{URI}@{world.commit}"
    assert not world.hub.bytes_sent("safetensors")


def test_a_pinned_model_is_fetched_once_and_runs_without_a_request(world: World) -> None:
    address = f"{URI}@{world.commit}"
    assert world.run("pull", address).code == 0
    world.hub.clear()
    done = world.run("run", address, "a", "--set", "max_new_tokens=3")
    assert (done.code, world.hub.requests) == (0, [])
    assert world.run("run", address, "a", HF_HUB_OFFLINE="1").code == 0


def test_a_lock_holds_a_branch_where_it_was(world: World) -> None:
    declare(world.project, URI)
    assert world.run("lock").code == 0
    assert not world.hub.bytes_sent("safetensors")
    pin = Lock.read(world.project / LOCK).models["mine"]
    assert (pin.revision, pin.license) == (world.commit, "mit")
    newer = world.repo.commit({"README.md": b"newer"})
    assert world.commit in world.run("pull", "mine").out
    assert world.run("lock", "--check").code == 0
    assert world.run("lock").out.endswith("changed: nothing\n")
    assert newer in world.run("lock", "--upgrade").out
    assert newer in world.run("pull", "--locked").out


def test_a_lock_refuses_what_deviates(world: World) -> None:
    declare(world.project, f"{URI}@{world.commit}")
    done = world.run("pull", "mine", "--locked")
    assert (done.code, "does not hold 'mine'" in done.err) == (1, True)
    assert world.run("lock").code == 0
    file = world.project / LOCK
    good = file.read_text()
    digest = Lock.read(file).models["mine"].files["model.safetensors"].sha256
    file.write_text(good.replace(digest, "0" * 64))
    done = world.run("pull", "--locked")
    assert (done.code, "nothing was loaded" in done.err) == (1, True)
    assert not world.hub.bytes_sent("safetensors")
    file.write_text(good)
    declare(world.project, f"{URI}@{'1' * 40}")
    for words in (("lock", "--check"), ("pull", "mine"), ("run", "mine", "a")):
        done = world.run(*words)
        assert (done.code, "Run `cambrian lock`" in done.err) == (1, True), words
    assert file.read_text() == good


def test_a_registered_hash_counts_before_anything_large_comes(world: World) -> None:
    declare(world.project, URI, f'{{"model.safetensors" = "{"a" * 64}"}}')
    done = world.run("pull", "mine")
    assert (done.code, "is expected; nothing was loaded" in done.err) == (1, True)
    assert not world.hub.bytes_sent("safetensors")


def test_info_reads_the_header_alone(world: World) -> None:
    facts = json.loads(world.run("info", URI, "--json").out)
    assert int(facts["parameters"].replace(",", "")) > 1000
    assert (facts["dtypes"], facts["commit"], facts["license"]) == (["F32"], world.commit, "mit")
    assert facts["config"]["cambrian"]["architecture"] == "gpt"
    size = world.repo.files()["model.safetensors"].size
    assert 0 < world.hub.bytes_sent("safetensors") < size / 2


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("pull",), 2, "Say what to pull"),
        (("pull", "gpt-demo"), 2, "names no weights"),
        (("pull", "hf://alice/none"), 2, "does not exist, or is private"),
        (("pull", URI, "--revision", "gone"), 2, "has no revision 'gone'"),
        (("pull", "--locked"), 1, "There is no cambrian.lock here"),
        (("lock", "--check", URI), 1, "does not hold"),
        (("pull", "hf://alice/../tiny"), 2, "is no address"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    world: World, words: tuple[str, ...], code: int, said: str
) -> None:
    done = world.run(*words)
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert len(done.err.splitlines()) == 1


def test_nothing_heavy_is_imported_to_pull(world: World) -> None:
    script = (
        "import sys; from cambrian import pulling; "
        f"pulling.pull('{URI}'); "
        "sys.exit([m for m in ('torch', 'onnxruntime', 'numpy') if m in sys.modules] and 1 or 0)"
    )
    environment = {**world.hub.environment(world.project / "home"), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=world.project, check=False
    )
    assert done.returncode == 0


def test_what_was_verified_for_another_architecture_is_refused(world: World) -> None:
    declare(world.project, f"{URI}@{world.commit}")
    assert world.run("pull", "mine").code == 0
    file = world.project / "cambrian.toml"
    file.write_text(file.read_text().replace('"gpt"', '"bert"'))
    world.hub.clear()
    done = world.run("pull", "mine")
    assert (done.code, world.hub.requests) == (1, []), done
    assert "config.json does not describe a bert model" in done.err


def test_a_lock_holds_what_is_named_and_keeps_it(world: World) -> None:
    declare(world.project, URI)
    with (world.project / "cambrian.toml").open("a") as file:
        file.write('[models.plain]\narchitecture = "gpt"\n')  # which a lock has no use for
    assert world.run("lock", f"{URI}@{world.commit}").code == 0
    lock = world.project / LOCK
    assert sorted(Lock.read(lock).models) == [URI, "mine"]
    written = lock.stat().st_ino
    assert world.run("lock").code == 0
    assert sorted(Lock.read(lock).models) == [URI, "mine"]
    assert lock.stat().st_ino == written  # what did not change is not written


def test_a_lock_follows_the_registry(world: World) -> None:
    declare(world.project, f"{URI}@{world.commit}")
    assert world.run("lock").code == 0
    address = f"{URI}@{world.commit}"
    declare(world.project, address, f'{{"config.json" = "{"a" * 64}"}}')
    assert "different contents of config.json" in world.run("lock", "--check").err
    declare(world.project, f"hf://alice/other@{world.commit}")
    assert f"pins 'mine' to {URI}@{world.commit}" in world.run("lock", "--check").err
    newer = world.repo.commit({"README.md": b"newer"})
    declare(world.project, f"{URI}@{newer}")
    assert world.run("lock").code == 0
    assert Lock.read(world.project / LOCK).models["mine"].revision == newer


def test_only_the_files_of_a_lock_come(world: World) -> None:
    declare(world.project, URI)
    assert world.run("lock").code == 0
    file = world.project / LOCK
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if "tokenizer_config" not in line))
    world.hub.clear()
    elsewhere = world.hub.environment(world.project.parent / "elsewhere")  # nothing is cached there
    assert world.run("pull", "--locked", **elsewhere).code == 0
    assert world.hub.bytes_sent("safetensors") and world.hub.matching("tokenizer.json")
    assert not world.hub.matching("tokenizer_config")


def test_another_revision_leaves_the_registrys_hashes_behind(world: World) -> None:
    newer = world.repo.commit({"README.md": b"newer"})
    declare(world.project, URI, f'{{"model.safetensors" = "{"a" * 64}"}}')
    assert world.run("pull", "mine").code == 1
    done = world.run("pull", "mine", "--revision", world.commit)
    assert (done.code, world.commit in done.out, newer in done.out) == (0, True, False), done.err
    done = world.run("pull", "mine", "--revision", world.commit, "--locked")
    assert (done.code, "exclude each other" in done.err) == (2, True)


def test_damage_that_leaves_no_trace_is_found_by_hashing_again(world: World) -> None:
    address = f"{URI}@{world.commit}"
    assert world.run("pull", address).code == 0
    (blob,) = (p.resolve() for p in (world.project.parent / "home").rglob("model.safetensors"))
    before, whole = blob.stat(), blob.read_bytes()
    with blob.open("r+b") as file:
        file.write(bytes(8))
    os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))
    world.hub.clear()
    assert (world.run("pull", address).code, world.hub.requests) == (0, [])
    assert world.run("pull", address, "--verify").code == 0
    assert blob.read_bytes() == whole
    assert world.hub.bytes_sent("safetensors") == len(whole)


def test_what_no_plugin_provides_is_known_by_its_description(world: World) -> None:
    world.hub.create("alice/strange").commit(
        {"config.json": b'{"model_type": "strange"}', "model.safetensors": bytes(99)}
    )
    done = world.run("pull", "hf://alice/strange")
    assert (done.code, "which no plugin provides" in done.err) == (2, True), done
    assert 'say so in cambrian.toml: [models.NAME] with architecture = "..."' in done.err
    assert not world.hub.bytes_sent("safetensors")


def test_a_cached_models_header_is_read_offline(world: World) -> None:
    address = f"{URI}@{world.commit}"
    online = json.loads(world.run("info", address, "--json").out)
    assert world.run("pull", address).code == 0
    world.hub.clear()
    done = world.run("info", address, "--json", HF_HUB_OFFLINE="1")
    assert (done.code, world.hub.requests) == (0, []), done.err
    offline = json.loads(done.out)
    assert [offline[k] for k in ("parameters", "dtypes", "config")] == [
        online[k] for k in ("parameters", "dtypes", "config")
    ]
    assert world.run("info", address).code == 0 and not world.hub.bytes_sent("safetensors")


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_what_came_before_a_failure_is_told(world: World, more: tuple[str, ...]) -> None:
    done = world.run("pull", URI, "hf://alice/none", "--json", *more)
    assert done.code == 2 and "does not exist" in done.err
    assert [model["name"] for model in json.loads(done.out)["models"]] == [URI]
    done = world.run("pull", "hf://alice/none", "--json", *more)
    assert (done.code, done.out) == (2, "")
