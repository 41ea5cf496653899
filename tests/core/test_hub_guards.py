"""What a fetch does not believe: a record, a cache that is a part, a listing of another commit,
sizes that are wrong; and what it leaves where it lies."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from cambrian.errors import BrokenFile, CambrianError
from cambrian.files import cache_folder
from cambrian.hub import Location, Wish, client, fetch, pin, plan, transfer, weights_header
from cambrian.hub.cache import commits
from cambrian.hub.layout import Layout
from cambrian.hub.lock import Lock, Pin, PinnedFile
from cambrian.testing.hub import Fault, LoopbackHub, Repository
from cambrian.weight_files import encode_header
from loopback import BLOB, LIST, MAIN, NEEDED, SHA256, SIZE, WEIGHTS, contents, point_at


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """A Hub, and this process's client pointed at it."""
    with LoopbackHub() as running:
        point_at(running, monkeypatch, tmp_path)
        yield running


@pytest.fixture
def repo(hub: LoopbackHub) -> Repository:
    """acme/tiny, which holds what a model needs."""
    made = hub.create("acme/tiny", license="mit")
    made.commit(NEEDED)
    return made


def test_without_the_hub_the_cache_must_have_all_that_was_verified(
    hub: LoopbackHub, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fetch(MAIN)
    (found.folder / "tokenizer.json").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for location in (MAIN, found.location):
        with pytest.raises(CambrianError, match=r"The cache lacks the tokenizer\.json of .*unset"):
            fetch(location)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.fault(LIST, Fault(status=503))
    with pytest.raises(CambrianError, match=r"The cache lacks the tokenizer\.json"):
        fetch(MAIN)
    assert fetch(MAIN).files.keys() == NEEDED.keys()
    shutil.rmtree(cache_folder("verified"))  # now nobody knows what there was
    (found.folder / "tokenizer.json").unlink()
    hub.fault(LIST, Fault(status=503))
    said: list[str] = []
    fetch(MAIN, report=lambda event: said.append(event.get("notice", "")))
    assert f"what the cache holds of {found.location} is taken for all of it" in said


def test_a_record_is_not_above_what_is_expected(hub: LoopbackHub, repo: Repository) -> None:
    found = fetch(MAIN)
    for name in ("model.safetensors", "vocab.txt"):
        with pytest.raises(BrokenFile, match=rf"{name} of .*{'0' * 64} is expected"):
            fetch(found.location, Wish(hashes={name: "0" * 64}))
    with pytest.raises(BrokenFile, match=r"lacks the file extra\.txt"):
        fetch(found.location, Wish(hashes={"extra.txt": "0" * 64}))


def test_a_listing_of_another_commit_is_no_answer(hub: LoopbackHub, repo: Repository) -> None:
    old = repo.head
    new = repo.commit({"vocab.txt": b"c\n"})
    about = client.read(
        f"{hub.endpoint}/api/models/acme/tiny/revision/{new}?blobs=true", MAIN, SIZE
    )
    hub.fault(LIST, Fault(body=about), times=None)
    with pytest.raises(BrokenFile, match=f"makes no sense .it speaks of commit {new}"):
        fetch(Location("acme/tiny", old))


def test_more_comes_than_listed(hub: LoopbackHub, repo: Repository) -> None:
    bomb = gzip.compress(bytes(2 * SIZE)).ljust(SIZE, b"!")  # of the length that is listed
    hub.fault(BLOB, Fault(body=bomb, headers={"content-encoding": "gzip"}), times=None)
    with pytest.raises(BrokenFile, match=f"with more than the {SIZE} bytes that the Hub lists"):
        fetch(MAIN)
    layout = Layout.of(MAIN.repo)
    [part] = layout.folder.rglob(f"{SHA256}*")
    assert part.stat().st_size <= SIZE
    hub.heal()
    hub.clear()
    part.write_bytes(WEIGHTS + b"!")  # longer than the whole: nothing to go on with
    assert contents(fetch(MAIN)) == NEEDED
    assert ["range" in asked.headers for asked in hub.matching(BLOB)] == [False]


def test_what_came_is_on_the_disk_before_it_has_its_name(
    hub: LoopbackHub, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []

    def note(path: Path) -> None:
        assert not path.with_name(path.name.partition(".")[0]).exists()
        flushed.append(path.name)

    monkeypatch.setattr(transfer, "fsync", note)
    found = fetch(MAIN)
    assert len(flushed) == len(found.files) and f"{SHA256}.cambrian.incomplete" in flushed


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "manifest.json"])
def test_a_description_of_any_size_is_not_fetched(hub: LoopbackHub, name: str) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"x", name: bytes((16 << 20) + 1)}
    if "index" in name:
        del files["model.safetensors"]
    hub.create("acme/huge").commit(dict(files))
    for ask in (fetch, plan, pin):
        with pytest.raises(BrokenFile, match=rf"{name} of .* has 16,777,217 bytes; more than"):
            ask(Location("acme/huge"))
    assert hub.bytes_sent(name) == 0


def test_only_what_is_read_comes(hub: LoopbackHub) -> None:
    read = ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json",
            "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt", "bpe.codes",
            "spiece.model")  # fmt: skip
    others = ("special_tokens_map.json", "added_tokens.json", "eval_results.json", "dump.txt",
              "requirements.txt", "sentencepiece.bpe.model", "flax_model.msgpack")  # fmt: skip
    hub.create("acme/full").commit(dict.fromkeys((*read, *others, "model.safetensors"), b"{}"))
    assert fetch(Location("acme/full")).files.keys() == {*read, "model.safetensors"}
    files = {"config.json": b"{}", "manifest.json": b'{"files": {"a.onnx": "", "odd.txt": ""}}'}
    export = {**files, "a.onnx": b"x", "odd.txt": b"x"}
    hub.create("acme/export").commit({**export, "other.txt": b"x"})
    assert fetch(Location("acme/export")).files.keys() == export.keys()


def test_a_branch_takes_the_place_of_one_above_or_below(hub: LoopbackHub, repo: Repository) -> None:
    repo.branch("feature/x")
    for name in ("feature", "feature/x", "feature"):
        repo.branch(name)
        assert contents(fetch(Location("acme/tiny", name))) == NEEDED
        assert Layout.of(MAIN.repo).commit(name) == repo.head


def test_a_cached_header_is_read_without_the_hub(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = encode_header({}, {"format": "pt"})
    hub.create("acme/empty").commit({"config.json": b"{}", "model.safetensors": weights})
    found = fetch(Location("acme/empty"))
    hub.clear()
    [file] = plan(found.location).needed[1:]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert weights_header(found.location, file).metadata == {"format": "pt"}
    blob = Layout.of("acme/empty").blob(file)
    blob.unlink()
    with pytest.raises(client.Unreachable, match="is not in the cache"):
        weights_header(found.location, file)


EXPORT: dict[str, bytes | Path | None] = {
    "config.json": b"{}",
    "manifest.json": b'{"files": {"config.json": "", "models/m/1/model.onnx": ""}}',
    "models/m/1/model.onnx": WEIGHTS,
    "models/m/1/other.onnx": b"not of the export",
}


def below(folder: Path) -> set[str]:
    """The names of the files in a folder and in those below it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_an_export_has_its_files_in_folders(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.create("acme/served").commit(EXPORT)
    main, wanted = Location("acme/served"), EXPORT.keys() - {"models/m/1/other.onnx"}
    found = fetch(main)
    assert found.files.keys() == below(found.folder) == wanted
    assert (found.folder / "models/m/1/model.onnx").read_bytes() == WEIGHTS
    [held] = commits(Layout.of(main.repo).root)
    assert held.files.keys() == wanted and held.strangers == () and held.verified
    held = pin(main)
    Lock({"served": held}).write(tmp_path / "cambrian.lock")
    assert Lock.read(tmp_path / "cambrian.lock").models["served"].files.keys() == wanted
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(main).files.keys() == wanted
    shutil.rmtree(cache_folder("verified"))  # now the links alone tell what there is
    assert fetch(main).files.keys() == wanted


def test_what_another_program_fetched_into_a_folder_is_a_stranger(hub: LoopbackHub) -> None:
    commit = hub.create("acme/served").commit(EXPORT)
    layout = Layout.of("acme/served")
    names = ("models/m/1/model.onnx", "models/m/1/other.onnx")
    for theirs in (layout.snapshot(commit) / name for name in names):
        theirs.parent.mkdir(parents=True, exist_ok=True)
        theirs.write_bytes(b"theirs")
    fetch(Location("acme/served"))
    [held] = commits(layout.root)
    assert held.strangers == names


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../x", "/x", "a//x", "a/./x", "a/.x", ".a/x", "a\\x", "c:/x", "a/\n", "", "a/",
     "/".join("abcdefghi")],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_not_seen(hub: LoopbackHub, name: str) -> None:
    assert not client.plain(name)
    manifest = json.dumps({"files": {name: "0" * 64}}).encode()
    hub.create("acme/hostile").commit({"config.json": b"{}", "manifest.json": manifest})
    with pytest.raises(BrokenFile, match="lacks the file "):
        fetch(Location("acme/hostile"))
    lock = Lock({"x": Pin("a/b", "1" * 40, {name: PinnedFile(1, "0" * 64)})})
    with pytest.raises(ValueError, match="matching regex"):
        Lock.parse(lock.text().encode())


def test_shards_lie_beside_their_index(hub: LoopbackHub) -> None:
    table = b'{"weight_map": {"a": "sub/model.safetensors"}}'
    hub.create("acme/shards").commit(
        {
            "config.json": b"{}",
            "model.safetensors.index.json": table,
            "sub/model.safetensors": WEIGHTS,
        }
    )
    with pytest.raises(BrokenFile, match=r"names 'sub/model\.safetensors'; shards lie beside"):
        fetch(Location("acme/shards"))
    assert hub.bytes_sent(r"sub/model\.safetensors") == 0
