"""Pushing to a Hub that stands on loopback, with the real client."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import cambrian
from cambrian import pushing
from cambrian.errors import BrokenFile, CambrianError, UsageError
from cambrian.hub.push import Pushed
from cambrian.testing.hub import Fault, LoopbackHub, User

TOKEN = "hf_alice"
TINY = ("n_layer=1", "n_embd=16", "n_head=2", "n_positions=16", "steps=6", "evaluate_every=2",
        "evaluate_batches=2", "validation_fraction=0.3", "precision=float32", "tokenizer=char",
        "device=cpu")  # fmt: skip
MODEL = {"README.md", "config.json", "generation_config.json", "loss.svg", "model.safetensors",
         "tokenizer.json", "tokenizer_config.json"}  # fmt: skip


class Made(NamedTuple):
    model: Path
    artifact: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A run and its export, by the public functions."""
    root = tmp_path_factory.mktemp("made")
    text = root / "sums|<b>`x`.txt"
    text.write_text("".join(f"{n} and {m} is {n + m}.\n" for n in range(40) for m in range(20)))
    cambrian.train("gpt", root / "sums", data=[str(text)], settings=TINY)
    cambrian.export(root / "sums", root / "sums-onnx")
    return Made(root / "sums", root / "sums-onnx")


@pytest.fixture
def model(made: Made, tmp_path: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(made.model, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hub on which alice may write, and this process's client pointed at it."""
    from huggingface_hub import constants

    with LoopbackHub() as hub:
        hub.users = {TOKEN: User("alice", can_write=True), "hf_bob": User("bob", can_write=True)}
        for name, value in {
            "ENDPOINT": hub.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint
            + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub


def push(folder: Path, address: str = "hf://alice/sums", **options: Any) -> Pushed:
    names = ("revision", "license", "with_training_state")
    plan = pushing.plan(folder, address, **{k: options.pop(k) for k in names if k in options})
    return pushing.push(plan, **options)


def download(hub: LoopbackHub, pushed: Pushed, folder: Path) -> dict[str, str]:
    """What the real client gets: sha256 by name."""
    from huggingface_hub import snapshot_download

    snapshot_download(
        pushed.location.repo,
        revision=pushed.location.revision,
        endpoint=hub.endpoint,
        cache_dir=folder / "cache",
        local_dir=folder / "copy",
    )
    copy = folder / "copy"
    return {
        p.relative_to(copy).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in copy.rglob("*")
        if p.is_file() and ".cache" not in p.parts
    }


def hashes(folder: Path, names: set[str]) -> dict[str, str]:
    where = {name: folder / ("train/loss.svg" if name == "loss.svg" else name) for name in names}
    return {n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in where.items()}


def front(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def writes(hub: LoopbackHub) -> list[str]:
    return [r.line for r in hub.requests if r.method not in ("GET", "HEAD")]


def test_what_is_pushed_comes_back_byte_by_byte(
    hub: LoopbackHub, made: Made, tmp_path: Path
) -> None:
    pushed = push(made.model, license="MIT")
    assert pushed.changed and str(pushed.location).startswith("hf://alice/sums@")
    found = download(hub, pushed, tmp_path)
    assert found.keys() == MODEL
    same = MODEL - {"README.md"}
    assert {n: found[n] for n in same} == hashes(made.model, same)
    copy = tmp_path / "copy"
    assert cambrian.run(copy, ["1 and 2"], max_new_tokens=4) == cambrian.run(
        made.model, ["1 and 2"], max_new_tokens=4
    )
    hub.clear()
    again = push(made.model, license="MIT")
    assert not again.changed and again.location == pushed.location and writes(hub) == []
    assert not hub.repository("alice/sums").private


def test_an_export_goes_with_its_receipt(hub: LoopbackHub, made: Made, tmp_path: Path) -> None:
    pushed = push(made.artifact, "hf://alice/sums-onnx", license="my-own 1: #x")
    found = download(hub, pushed, tmp_path)
    manifest = json.loads((made.artifact / "manifest.json").read_text())
    names = {"manifest.json", *manifest["files"]}
    assert found.keys() == {*names, "README.md"}
    assert {n: found[n] for n in names} == hashes(made.artifact, names)
    assert cambrian.verify(tmp_path / "copy", device="cpu")["cases"]
    card = (tmp_path / "copy" / "README.md").read_text()
    assert front(card) | {"license": "other", "license_name": "my-own 1: #x"} == front(card)
    assert front(card)["tags"] == ["gpt", "onnx"]
    receipt = manifest["receipt"]
    assert f"at most {receipt['max_abs_diff']:.2g} off" in card and receipt["provider"] in card
    assert all(f"| {case['name']} |" in card for case in receipt["cases"])
    (made.artifact / "model.onnx").rename(tmp_path / "kept")
    try:
        (made.artifact / "model.onnx").write_bytes(b"x" + (tmp_path / "kept").read_bytes()[1:])
        with pytest.raises(BrokenFile, match=r"model\.onnx is not the file that was exported"):
            push(made.artifact)
    finally:
        (tmp_path / "kept").replace(made.artifact / "model.onnx")


def test_an_export_with_folders_runs_from_the_hub(
    hub: LoopbackHub, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    cambrian.export(made.model, tmp_path / "served", format="triton")
    pushed = push(tmp_path / "served", "hf://alice/served")
    assert "models/decoder/1/model.onnx" in pushed.sent
    again = cambrian.run("hf://alice/served", ["1 and 2"], device="cpu", max_new_tokens=4)
    assert again == cambrian.run(tmp_path / "served", ["1 and 2"], device="cpu", max_new_tokens=4)
    assert cambrian.verify(cambrian.pull("hf://alice/served").folder, device="cpu")["cases"]


def test_the_plan_names_all_and_sends_nothing(hub: LoopbackHub, model: Path) -> None:
    for name in (".env", "notes.txt", "secrets.json"):
        (model / name).write_text("{}")
    (model / "elsewhere").symlink_to("/etc/passwd")
    command = [sys.executable, "-m", "cambrian", "push", str(model), "hf://alice/x", "--dry-run"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.endpoint}
    del environment["HF_TOKEN"]
    done = subprocess.run(
        [*command, "--json"], env=environment, capture_output=True, text=True, check=True
    )
    plan = json.loads(done.stdout)
    assert {file["name"]: file["bytes"] for file in plan["files"]}.keys() == MODEL
    assert plan["left_out"] == {
        ".env": "hidden",
        "elsewhere": "a link",
        "notes.txt": "no part of the model",
        "secrets.json": "no part of the model",
        "train/": "the training's state; --with-training-state sends it",
    }
    assert plan["address"] is None and "no licence" in plan["notes"][0]
    assert hub.requests == []


def test_training_state_goes_only_when_asked_for(hub: LoopbackHub, model: Path) -> None:
    (model / "train" / "other.txt").write_text("x")
    plan = pushing.plan(model, "hf://alice/sums", with_training_state=True)
    names = {file.name for file in plan.files}
    assert {"train/run.json", "train/recipe.toml", "train/step-00000006/state.json"} < names
    assert "train/step-00000006/optimizer.safetensors" in names
    assert plan.left == {"train/other.txt": "no part of the model"}
    assert any("names paths of this machine" in note for note in plan.notes)
    pushing.push(plan)
    assert hub.repository("alice/sums").files().keys() - {".gitattributes"} == names


def test_a_card_that_a_person_edited_is_kept(hub: LoopbackHub, model: Path) -> None:
    (model / "README.md").write_text("# My own words\n")
    plan = pushing.plan(model, "hf://alice/sums", license="mit")
    assert any("--license does not reach it" in note for note in plan.notes)
    assert "loss.svg" not in {file.name for file in plan.files}
    pushing.push(plan)
    assert "README.md" in hub.repository("alice/sums").files()
    (model / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(CambrianError, match=r"does not take this .* Nothing was committed"):
        push(model)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "config.json", "train"])
def test_links_are_refused(model: Path, tmp_path: Path, name: str) -> None:
    (model / name).rename(tmp_path / "outside")
    (model / name).symlink_to(tmp_path / "outside")
    with pytest.raises(UsageError, match=f"'{name}.*is a link"):
        pushing.plan(model, "hf://alice/sums")


def test_broken_and_foreign_folders_are_refused(model: Path) -> None:
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(BrokenFile, match=r"model\.safetensors is not a readable safetensors"):
        pushing.plan(model, "hf://alice/sums")
    weights.unlink()
    with pytest.raises(CambrianError, match=r"no weights|missing"):
        pushing.plan(model, "hf://alice/sums")
    (model / "pytorch_model.bin").write_bytes(b"no pickle")
    with pytest.raises(UsageError, match=r"pytorch_model\.bin is in torch's own format"):
        pushing.plan(model, "hf://alice/sums")
    weights.write_bytes(whole)
    description = json.loads((model / "config.json").read_text())
    del description["cambrian"]
    (model / "config.json").write_text(json.dumps(description))
    with pytest.raises(UsageError, match="not made by Cambrian"):
        pushing.plan(model, "hf://alice/sums")


def test_branches_pull_requests_and_private(hub: LoopbackHub, made: Made) -> None:
    pushed = push(made.model, private=True, message="First")
    repository = hub.repository("alice/sums")
    assert repository.private and repository.history("main")[0].title == "First"
    main = repository.find("main")
    branch = push(made.model, revision="next", license="mit")
    assert branch.changed and branch.sent == ("README.md",)
    assert repository.find("next") == branch.location.revision
    proposed = push(made.model, license="isc", pull_request=True)
    assert proposed.pull_request and repository.find("refs/pr/1") == proposed.location.revision
    assert repository.find("main") == main == pushed.location.revision
    hub.create("alice/open")
    with pytest.raises(UsageError, match="exists and is public"):
        push(made.model, "hf://alice/open", private=True)
    with pytest.raises(UsageError, match="is a commit"):
        push(made.model, f"hf://alice/sums@{main}")


def test_refusals_are_sentences(
    hub: LoopbackHub, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create("carol/sums")
    with pytest.raises(CambrianError, match=r"may not write to hf://carol/sums .*rights"):
        push(made.model, "hf://carol/sums")
    with pytest.raises(CambrianError, match="does not exist, or is private"):
        push(made.model, "hf://alice/none", pull_request=True)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(CambrianError, match="token: it is wrong or has expired"):
        push(made.model)
    hub.clear()
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(CambrianError, match="there is no token; log in"):
        push(made.model)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CambrianError, match="HF_HUB_OFFLINE is set"):
        push(made.model)
    assert hub.requests == []


def test_a_push_in_between_wins(hub: LoopbackHub, made: Made) -> None:
    repository = hub.create("alice/sums")

    def meanwhile(line: str) -> None:
        if line.startswith("sending"):
            repository.commit({"other.txt": b"x"})

    plan = pushing.plan(made.model, "hf://alice/sums")
    with pytest.raises(CambrianError, match="changed while this was being pushed"):
        pushing.push(plan, report=meanwhile)
    assert "model.safetensors" not in repository.files()
    done = pushing.push(plan)
    assert done.changed and done.stays == ("other.txt",)


def test_a_conflict_and_a_server_without_xet(
    hub: LoopbackHub, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.create("alice/sums")
    before = repository.find("main")
    hub.fault(r"POST hub /api/models/alice/sums/commit", Fault(status=409))
    with pytest.raises(CambrianError, match="is in conflict"):
        push(made.model)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    with pytest.raises(CambrianError, match="HF_HUB_DISABLE_XET=1"):
        push(made.model)
    assert repository.find("main") == before


def test_an_export_is_pulled_and_runs(
    hub: LoopbackHub, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    address = str(push(made.artifact, "hf://alice/sums-onnx").location)
    manifest = json.loads((made.artifact / "manifest.json").read_text())
    found = cambrian.pull(address)
    assert found.files.keys() == {"manifest.json", *manifest["files"]}
    hub.clear()
    local = cambrian.run(made.artifact, ["1 and 2"], max_new_tokens=4)
    assert cambrian.run(address, ["1 and 2"], max_new_tokens=4) == local
    assert cambrian.verify(found.folder, device="cpu")["cases"] and hub.requests == []


def test_a_server_that_says_nothing_is_left(
    hub: LoopbackHub, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", id)  # no waits in between
    hub.fault("PUT cdn", Fault(delay=5), times=None)
    with pytest.raises(CambrianError, match=r"Sending to hf://alice/sums@main failed \(timed out"):
        push(made.model)
    tries = len(hub.matching("PUT cdn"))
    assert tries == 6 and "model.safetensors" not in hub.repository("alice/sums").files()
    hub.heal()
    assert push(made.model).changed and len(hub.matching("PUT cdn")) == tries, "sent once more"
    hub.fault("POST hub .*/commit/", Fault(delay=5), times=None)
    with pytest.raises(CambrianError, match=r"Cannot push .* does not answer \(timed out"):
        push(made.model, license="mit")


def test_an_upload_that_is_sent_elsewhere_or_refused(hub: LoopbackHub, made: Made) -> None:
    hub.fault("objects/batch", Fault(redirect_loop=True), times=None)
    with pytest.raises(
        CambrianError, match=r"does not answer \(Exceeded maximum allowed redirects"
    ):
        push(made.model)
    hub.heal()
    hub.fault("PUT cdn", Fault(status=307, headers={"Location": f"{hub.endpoint}/other"}))
    with pytest.raises(CambrianError, match=r"Sending to hf://alice/sums@main failed .*Push again"):
        push(made.model)
    assert [r for r in hub.matching("PUT hub /other") if "authorization" in r.headers] == []
    hub.fault("PUT cdn", Fault(status=403))
    with pytest.raises(CambrianError, match=r"failed \(status 403\); nothing was committed"):
        push(made.model)
    assert "model.safetensors" not in hub.repository("alice/sums").files()
    assert push(made.model).changed


def test_the_model_that_was_there_is_not_taken_for_the_new_one(
    hub: LoopbackHub, made: Made, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    repository = hub.create("alice/sums")
    repository.commit({"notes.md": b"mine", "pytorch_model.bin": b"older"})
    assert push(made.artifact).deleted == ("pytorch_model.bin",)
    (model / "generation_config.json").unlink()
    pushed = push(model)
    assert pushed.deleted == ("generation_config.json", "manifest.json")
    assert "notes.md" in pushed.stays and "model.onnx" in pushed.stays
    assert "model.safetensors" in cambrian.pull(str(pushed.location)).files
    whole = model / "model.safetensors"
    shutil.copy(whole, model / "model-00001-of-00001.safetensors")
    from safetensors.numpy import load_file

    shard = "model-00001-of-00001.safetensors"
    index = {"weight_map": dict.fromkeys(load_file(whole), shard)}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    whole.unlink()
    sharded = push(model)
    assert sharded.deleted == ("model.safetensors",)
    assert cambrian.pull(str(sharded.location)).files.keys() >= set(sharded.sent) - MODEL
    assert not push(model).changed


def test_a_repository_that_was_made_for_nothing_is_said(hub: LoopbackHub, made: Made) -> None:
    said: list[str] = []
    hub.create("alice/sums")
    for address in ("hf://alice/none", "hf://alice/sums"):
        with pytest.raises(CambrianError, match="does not exist"):
            push(made.model, address, revision="refs/pr/1", report=said.append)
    assert said == [] and writes(hub) == []
    hub.fault("POST hub .*/commit", Fault(status=400), times=None)
    with pytest.raises(CambrianError):
        push(made.model, "hf://alice/new", report=said.append)
    assert said[-1] == "hf://alice/new was made and is empty; push again, or delete it"
