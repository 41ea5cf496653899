"""The loopback Hub, by the real client: what cambrian's own tests of the Hub stand on."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants, errors
from huggingface_hub import hf_hub_download as hf_file
from huggingface_hub import snapshot_download as hf_snapshot
from huggingface_hub.utils import httpx

from cambrian.testing.hub import Fault, LoopbackHub, StaleParent, User

WEIGHTS = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
FILES: dict[str, bytes | Path | None] = {
    "config.json": b'{"a": 1}\n',
    "nested/deep/notes.txt": b"notes\n",
    "model.safetensors": WEIGHTS,
}


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("XET", "TELEMETRY", "PROGRESS_BARS"):
        monkeypatch.setattr(constants, f"HF_HUB_DISABLE_{name}", True)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", id)  # no waits


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub(page_size=2) as running:
        running.users = {
            "hf_alice": User("alice", can_write=True, orgs=("acme",)),
            "hf_bob": User("bob", accepted={"acme/secret", "acme/gated"}),
            "hf_carol": User("carol", can_write=True),
        }
        yield running


def api(hub: LoopbackHub, token: str | None = None) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=token or False)


def snapshot(hub: LoopbackHub, name: str, cache: Path, **options: object) -> dict[str, bytes]:
    where = {"endpoint": hub.endpoint, "cache_dir": cache, "token": False, **options}
    folder = Path(hf_snapshot(name, **where))  # type: ignore[arg-type]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def download(hub: LoopbackHub, file: str, cache: Path, **options: object) -> bytes:
    where = {"endpoint": hub.endpoint, "cache_dir": cache, "token": False, **options}
    return Path(hf_file("acme/tiny", file, **where)).read_bytes()  # type: ignore[arg-type]


def fetch(url: str, **headers: str) -> bytes:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        error.close()
        raise


def get(hub: LoopbackHub, path: str, **headers: str) -> bytes:
    return fetch(f"{hub.endpoint}/acme/tiny/resolve/main/{path}", **headers)


def test_a_snapshot_has_every_file_and_a_pinned_one_asks_nothing_again(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    pin = hub.create("acme/tiny").commit(FILES)
    assert snapshot(hub, "acme/tiny", tmp_path) == FILES
    assert len(hub.matching("/tree/")) == 3  # five entries, two to a page
    assert hub.bytes_sent(r"cdn .*model\.safetensors") == len(WEIGHTS)
    hub.clear()
    assert snapshot(hub, "acme/tiny", tmp_path, revision=pin) == FILES
    assert hub.requests == []


def test_what_the_api_says_are_the_true_sizes_and_hashes(hub: LoopbackHub) -> None:
    repo = hub.create("acme/tiny", license="apache-2.0", gated=True)
    pin = repo.commit(FILES)
    info = api(hub).model_info("acme/tiny", files_metadata=True)
    assert (info.sha, info.gated, info.private) == (pin, "auto", False)
    assert info.card_data is not None and info.card_data.license == "apache-2.0"
    assert info.tags == ["license:apache-2.0"]
    files = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    assert set(files) == {*FILES, "README.md"}
    weights, config = files["model.safetensors"], files["config.json"]
    assert weights.lfs is not None and weights.size == len(WEIGHTS)
    assert weights.lfs.sha256 == SHA256
    assert config.lfs is None
    assert config.blob_id == "cb5b2f69babc53f9145b45ad20b9a075d48717ef"  # as git hash-object says
    (found,) = api(hub).get_paths_info("acme/tiny", ["model.safetensors", "absent"])
    assert found.lfs.sha256 == weights.lfs.sha256  # type: ignore[union-attr]
    below = api(hub).list_repo_tree("acme/tiny", "nested", recursive=True)
    assert [entry.path for entry in below] == ["nested/deep", "nested/deep/notes.txt"]


def test_history_is_kept_and_names_stay_where_they_are(hub: LoopbackHub, tmp_path: Path) -> None:
    repo = hub.create("acme/tiny")
    first = repo.commit({"config.json": b"1", "old.txt": b"old"})
    repo.tag("v1", first)
    second = repo.commit({"config.json": b"2", "old.txt": None}, title="second")
    assert first != second == repo.head
    for revision in (first, first[:8], "v1"):
        assert download(hub, "config.json", tmp_path, revision=revision) == b"1"
    assert download(hub, "config.json", tmp_path) == b"2"
    with pytest.raises(errors.EntryNotFoundError):
        download(hub, "old.txt", tmp_path)
    assert [c.commit_id for c in api(hub).list_repo_commits("acme/tiny")][:2] == [second, first]
    refs = api(hub).list_repo_refs("acme/tiny")
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1", first)]
    with pytest.raises(StaleParent):
        repo.commit({"config.json": b"3"}, parent_commit=first)
    with pytest.raises(errors.RevisionNotFoundError):
        download(hub, "config.json", tmp_path, revision="0" * 40)


def test_the_token_is_not_shown_to_the_cdn(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.create("acme/secret", private=True).commit(FILES)
    assert snapshot(hub, "acme/secret", tmp_path, token="hf_bob") == FILES
    hub_asked, cdn_asked = hub.matching(" hub "), hub.matching(" cdn ")
    assert {record.headers.get("authorization") for record in hub_asked} == {"Bearer hf_bob"}
    assert len(cdn_asked) == 1 and "authorization" not in cdn_asked[0].headers
    # A client that did show it would learn so:
    with pytest.raises(urllib.error.HTTPError, match="400"):
        fetch(hub.cdn + cdn_asked[0].path, Authorization="x")


def test_who_may_not_read_is_told_as_the_hub_tells(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.create("acme/secret", private=True).commit(FILES)
    hub.create("acme/gated", gated="manual").commit(FILES)
    for token, status in ((None, 401), ("hf_carol", 404)):
        for name in ("acme/secret", "acme/absent"):
            with pytest.raises(errors.RepositoryNotFoundError) as missing:
                api(hub, token).model_info(name)
            assert missing.value.response.status_code == status
    for token, status in ((None, 401), ("hf_carol", 403)):
        assert api(hub, token).model_info("acme/gated").gated == "manual"
        with pytest.raises(errors.GatedRepoError) as gated:
            api(hub, token).auth_check("acme/gated")
        assert gated.value.response.status_code == status
    with pytest.raises(errors.HfHubHTTPError, match="Invalid credentials"):
        api(hub, "hf_nobody").model_info("acme/gated")
    assert snapshot(hub, "acme/gated", tmp_path, token="hf_bob") == FILES
    assert api(hub, "hf_alice").whoami()["orgs"][0]["name"] == "acme"


def test_who_may_not_write_is_told_why(hub: LoopbackHub) -> None:
    hub.create("acme/tiny")
    for token, why in (("hf_bob", "write token"), ("hf_carol", "namespace")):
        with pytest.raises(errors.HfHubHTTPError, match=why) as refused:
            api(hub, token).upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="acme/tiny")
        assert refused.value.response.status_code == 403
    with pytest.raises(errors.HfHubHTTPError, match="namespace"):
        api(hub, "hf_carol").create_repo("acme/other")
    with pytest.raises(errors.RepositoryNotFoundError):
        api(hub).auth_check("acme/tiny", write=True)
    api(hub, "hf_alice").auth_check("acme/tiny", write=True)


def folder_of(path: Path, files: dict[str, bytes | Path | None]) -> Path:
    for name, content in files.items():
        assert isinstance(content, bytes)
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # the client's own
def test_what_is_uploaded_comes_back_and_is_not_uploaded_twice(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    files = {**FILES, "README.md": b"---\nlicense: mit\n---\n"}
    alice, folder = api(hub, "hf_alice"), folder_of(tmp_path / "up", files)
    url = alice.create_repo("acme/tiny", private=True)
    assert url == alice.create_repo("acme/tiny", exist_ok=True)
    assert (url.repo_id, url.repo_type) == ("acme/tiny", "model")
    first = alice.upload_folder(repo_id="acme/tiny", folder_path=folder)
    assert first.oid == alice.model_info("acme/tiny").sha
    found = snapshot(hub, "acme/tiny", tmp_path / "down", token="hf_alice", revision=first.oid)
    assert found == files
    (put,) = hub.matching("^PUT cdn ")
    assert (put.received, put.status) == (len(WEIGHTS), 200)
    hub.clear()
    again = alice.upload_folder(repo_id="acme/tiny", folder_path=folder)
    assert again.oid == first.oid and not hub.matching("/commit/|^PUT")
    # The same bytes by another name, and a folder gone.
    (folder / "model.safetensors").rename(folder / "other.bin")
    alice.upload_folder(
        repo_id="acme/tiny", folder_path=folder, delete_patterns=["*.safetensors", "nested/*"]
    )
    assert not hub.matching("^PUT") and len(hub.matching("/commit/")) == 1
    alice.delete_folder("nested", "acme/tiny")
    assert set(alice.list_repo_files("acme/tiny")) == {"config.json", "other.bin", "README.md"}
    alice.delete_repo("acme/tiny")
    assert not alice.repo_exists("acme/tiny")


def test_a_stale_commit_is_refused_and_a_proposal_leaves_main_alone(hub: LoopbackHub) -> None:
    repo = hub.create("acme/tiny")
    first = repo.commit({"a": b"1"})
    second = repo.commit({"a": b"2"})
    add, alice, carol = [CommitOperationAdd("a", b"3")], api(hub, "hf_alice"), api(hub, "hf_carol")
    with pytest.raises(errors.HfHubHTTPError) as stale:
        alice.create_commit("acme/tiny", add, commit_message="late", parent_commit=first)
    assert stale.value.response.status_code == 412 and repo.head == second
    # Whoever may write at all may propose, but not commit.
    made = carol.create_commit("acme/tiny", add, commit_message="better", create_pr=True)
    assert (made.pr_num, made.pr_revision) == (1, "refs/pr/1")
    assert repo.head == second
    assert repo.files("refs/pr/1")["a"].body.read(0, 9) == b"3"
    refs = api(hub).list_repo_refs("acme/tiny", include_pull_requests=True).pull_requests
    assert refs and (refs[0].ref, refs[0].target_commit) == ("refs/pr/1", made.oid)


def test_tags_branches_and_cards_are_judged(hub: LoopbackHub) -> None:
    repo, alice = hub.create("acme/tiny"), api(hub, "hf_alice")
    pin = repo.commit({"a": b"1"})
    alice.create_tag("acme/tiny", tag="v1", revision=pin)
    alice.create_branch("acme/tiny", branch="next/one", revision="v1")
    assert (repo.tags, repo.branches["next/one"]) == ({"v1": pin}, pin)
    with pytest.raises(errors.HfHubHTTPError, match="409"):
        alice.create_tag("acme/tiny", tag="v1")
    with pytest.raises(errors.RevisionNotFoundError):
        alice.create_tag("acme/tiny", tag="v2", revision="nowhere")
    alice.upload_file(
        path_or_fileobj=b"2", path_in_repo="a", repo_id="acme/tiny", revision="next/one"
    )
    assert repo.head == pin != repo.branches["next/one"]
    alice.delete_tag("acme/tiny", tag="v1")
    alice.delete_branch("acme/tiny", branch="next/one")
    assert (repo.tags, list(repo.branches)) == ({}, ["main"])
    card = b"---\nlicense: all mine\n---\n"
    with pytest.raises(ValueError, match="license"):
        alice.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="acme/tiny")


def test_a_file_goes_up_and_comes_down_by_xet(tmp_path: Path) -> None:
    """In a process of its own, as the client keeps its xet session for good."""
    folder = folder_of(tmp_path / "up", FILES)
    code = """
        import sys
        from pathlib import Path
        from huggingface_hub import HfApi, snapshot_download
        api = HfApi()
        api.create_repo("acme/tiny")
        oid = api.upload_folder(repo_id="acme/tiny", folder_path=sys.argv[1]).oid
        again = api.upload_folder(repo_id="acme/tiny", folder_path=sys.argv[1]).oid
        assert oid == again == api.model_info("acme/tiny").sha
        down = Path(snapshot_download("acme/tiny", revision=oid))
        assert (down / "model.safetensors").read_bytes() == Path(sys.argv[2]).read_bytes()
    """
    with LoopbackHub(xet=tmp_path / "cas") as hub:
        hub.users["hf_alice"] = User("alice", can_write=True, orgs=("acme",))
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), folder, folder / "model.safetensors"],
            env=hub.environment(tmp_path / "home", "hf_alice"),
            check=True,
            timeout=60,
        )
        assert hub.matching("xet-write-token") and hub.matching("xet-read-token")
        assert not hub.matching(" cdn ")
        weights = hub.repository("acme/tiny").files()["model.safetensors"]
        assert (weights.sha256, weights.size) == (SHA256, len(WEIGHTS))


def test_a_cut_download_is_resumed_with_a_range(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.create("acme/tiny").commit(FILES)
    hub.fault(r"model\.safetensors", Fault(cut_after=100_000))
    assert download(hub, "model.safetensors", tmp_path) == WEIGHTS
    first, second = hub.matching("^GET cdn ")
    assert (first.status, first.sent, second.status) == (200, 100_000, 206)
    start = int(second.headers["range"].removeprefix("bytes=").rstrip("-"))
    assert start > 0 and second.sent == len(WEIGHTS) - start
    # And where the range is ignored, all of it comes again.
    hub.clear()
    hub.fault("cdn", Fault(cut_after=100_000))
    hub.fault("cdn", Fault(ignore_range=True))
    assert download(hub, "model.safetensors", tmp_path / "other") == WEIGHTS
    assert [record.sent for record in hub.matching("cdn")] == [100_000, len(WEIGHTS)]


def test_the_client_sees_a_short_file_but_no_flipped_byte(hub: LoopbackHub, tmp_path: Path) -> None:
    """Why cambrian hashes for itself. If this fails, the client has learnt to: rejoice."""
    hub.create("acme/tiny").commit(FILES)
    hub.fault("cdn", Fault(flip=7), times=None)
    bad = download(hub, "model.safetensors", tmp_path)
    assert [i for i in range(len(WEIGHTS)) if bad[i] != WEIGHTS[i]] == [7]
    hub.heal()
    hub.fault("cdn", Fault(short=1000))
    with pytest.raises(OSError, match="Consistency"):
        download(hub, "model.safetensors", tmp_path / "short")


def test_every_other_fault_does_as_it_says(hub: LoopbackHub) -> None:
    hub.create("acme/tiny").commit(FILES)

    def seconds(fault: Fault) -> float:
        hub.fault("config", fault)
        before = time.monotonic()
        assert get(hub, "config.json") == FILES["config.json"]
        return time.monotonic() - before

    assert seconds(Fault(delay=0.2)) > 0.2
    assert seconds(Fault(stall=0.2, stall_after=4)) > 0.2
    assert seconds(Fault(throttle=45)) > 0.15  # nine bytes
    assert seconds(Fault()) < 0.2
    hub.fault("config", Fault(status=429, retry_after=3))
    with pytest.raises(urllib.error.HTTPError) as busy:
        get(hub, "config.json")
    assert (busy.value.code, busy.value.headers["Retry-After"]) == (429, "3")
    hub.fault("config", Fault(drop=True))
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        get(hub, "config.json")
    hub.fault("config", Fault(redirect_loop=True), times=None)
    with pytest.raises(urllib.error.HTTPError, match="infinite loop"):
        get(hub, "config.json")
    hub.heal()
    hub.fault("HEAD .*config", Fault(headers={"etag": '"another"', "X-Repo-Commit": None}))
    facts = api(hub).get_hf_file_metadata(url=f"{hub.endpoint}/acme/tiny/resolve/main/config.json")
    assert (facts.etag, facts.commit_hash) == ("another", None)
    hub.fault("config", Fault(body=b"{not json"))
    assert get(hub, "config.json") == b"{not json"
    hub.fault("config", Fault(spaces=10_000_000, headers={"Content-Type": None}))
    assert get(hub, "config.json") == b" " * 10_000_000
    # A fault of the body waits for one, behind the redirect.
    hub.fault("safetensors", Fault(flip=0))
    assert get(hub, "model.safetensors") == bytes([WEIGHTS[0] ^ 0xFF]) + WEIGHTS[1:]


def test_parts_are_served_from_the_end_and_not_of_a_file_that_has_changed(hub: LoopbackHub) -> None:
    hub.create("acme/tiny").commit(FILES)
    assert get(hub, "model.safetensors", Range="bytes=-10") == WEIGHTS[-10:]
    assert get(hub, "model.safetensors", Range="bytes=5-8") == WEIGHTS[5:9]
    since = {"Range": "bytes=5-8", "If-Range": '"old"'}
    assert get(hub, "config.json", **since) == FILES["config.json"]
    with pytest.raises(urllib.error.HTTPError, match="416"):
        get(hub, "config.json", Range="bytes=9-")


def test_a_status_fault_does_nothing_and_a_drop_hides_what_was_done(hub: LoopbackHub) -> None:
    repo, alice = hub.create("acme/tiny"), api(hub, "hf_alice")
    first = repo.head
    hub.fault("POST .*/commit/", Fault(status=403))
    hub.fault("POST .*/commit/", Fault(drop=True))
    for done in (False, True):
        with pytest.raises((errors.HfHubHTTPError, httpx.HTTPError)):
            alice.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="acme/tiny")
        assert (repo.head != first) == done


def test_a_child_process_sees_this_hub_alone_and_closing_wakes_whoever_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "HTTP_PROXY", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    with LoopbackHub() as hub:
        hub.create("acme/tiny").commit(FILES)
        code = "import sys; from huggingface_hub import snapshot_download as s; s('acme/tiny')"
        child = [sys.executable, "-c", code]
        subprocess.run(child, env=hub.environment(tmp_path), check=True, timeout=60)
        assert hub.bytes_sent() > len(WEIGHTS)
        assert not any("authorization" in record.headers for record in hub.requests)
        assert not hub.matching("harnesses")
        hub.clear()
        hub.fault("tree", Fault(stall=60), times=None)
        env = hub.environment(tmp_path / "new")
        waiting = subprocess.Popen(child, env=env, stderr=subprocess.DEVNULL)
        while not hub.matching("tree"):
            threading.Event().wait(0.02)
        before = time.monotonic()
    assert time.monotonic() - before < 5
    waiting.kill()
    waiting.wait()


def test_importing_it_is_light() -> None:
    code = "import sys, cambrian.testing.hub; print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    found = set(printed.decode().split())
    assert "cambrian.testing.hub" in found and not found & {"torch", "numpy", "huggingface_hub"}
