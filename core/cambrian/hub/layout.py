"""The client's cache on disk: where things lie, and what lies there.

    models--owner--repo/
        blobs/<etag>                 contents, each named by its hash
        snapshots/<commit>/<name>    links to them
        refs/<branch>                the commit that a branch or tag was last seen at

Source: huggingface_hub, docs/guides/manage-cache.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cambrian.files import write_bytes, write_with
from cambrian.hub import client
from cambrian.hub.listing import Listing, RemoteFile
from cambrian.hub.location import COMMIT, Location

SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
KEEP = "cambrian-"  # our refs begin so: `hf cache prune` deletes what no ref names
PART = ".cambrian.incomplete"  # what has come of a file ends so


@dataclass(frozen=True)
class Layout:
    """One repository's part of the cache at `root` (HF_HUB_CACHE)."""

    root: Path
    repo: str

    @classmethod
    def of(cls, repo: str) -> Layout:
        """In the cache that the environment names."""
        return cls(Path(client.constants().HF_HUB_CACHE), repo)

    @property
    def folder(self) -> Path:
        """All of the repository."""
        return self.root / self._name

    @property
    def read_only(self) -> bool:
        """Whether the folder is somebody else's, who lets us read it."""
        return self.folder.is_dir() and not os.access(self.folder, os.W_OK)

    @property
    def _name(self) -> str:
        return "models--" + self.repo.replace("/", "--")

    def blob(self, file: RemoteFile) -> Path:
        """A file's content."""
        return self.folder / "blobs" / file.etag

    def holds(self, file: RemoteFile) -> bool:
        """Whether the content is there with all its bytes; whether they are right, a hash tells."""
        blob = self.blob(file)
        return blob.is_file() and blob.stat().st_size == file.size

    def part(self, file: RemoteFile) -> Path:
        """What has come of it so far; the client lists such names as incomplete."""
        return self.folder / "blobs" / f"{file.etag}{PART}"

    def lock(self, file: RemoteFile) -> Path:
        """What the client locks, too, while it writes the content."""
        return self.locks / f"{file.etag}.lock"

    @property
    def locks(self) -> Path:
        """The locks of all contents."""
        return self.root / ".locks" / self._name

    def snapshot(self, commit: str) -> Path:
        """The files of a commit."""
        return self.folder / "snapshots" / commit

    def commit(self, revision: str) -> str | None:
        """The commit that a branch or a tag was last seen at, if it ever was."""
        if COMMIT.fullmatch(revision):
            return revision
        try:
            text = (self.folder / "refs" / revision).read_text("ascii")[:41].strip()
        except (OSError, ValueError):
            return None
        return text if COMMIT.fullmatch(text) else None

    def point(self, commit: str, file: RemoteFile) -> None:
        """Have the snapshot name the content; a copy where the disk knows no links."""
        pointer = self.snapshot(commit) / file.name
        pointer.parent.mkdir(parents=True, exist_ok=True)
        blob = self.blob(file)
        target = os.path.relpath(blob, pointer.parent)
        if pointer.is_symlink() and str(pointer.readlink()) == target:
            return
        fresh = pointer.with_name(f".{pointer.name}.{os.getpid()}.link")
        fresh.unlink(missing_ok=True)
        try:
            fresh.symlink_to(target)
        except OSError:
            write_with(pointer, lambda copy: shutil.copyfile(blob, copy))
        else:
            fresh.replace(pointer)

    def name_commit(self, commit: str, revision: str) -> None:
        """Note what a branch is at, and protect the commit from `hf cache prune`; in a cache that
        can be written."""
        if self.read_only:
            return
        self.snapshot(commit).mkdir(parents=True, exist_ok=True)  # the client wants it for a ref
        for name in {revision, KEEP + commit[:12]} - {commit}:
            file = self.folder / "refs" / name
            if not file.is_file() or file.read_bytes() != commit.encode():
                self._make_way(file)
                write_bytes(file, commit.encode())

    def keeps(self, commit: str) -> bool:
        """Whether a ref of ours is on a commit."""
        return self.commit(KEEP + commit[:12]) == commit

    def _make_way(self, ref: Path) -> None:
        """Remove refs of branches that are gone, since git has none beside this one: `feature` for
        `feature/x`, or the other way round."""
        names = ref.relative_to(self.folder / "refs").parents
        for above in [self.folder / "refs" / name for name in names]:
            if above.is_file():
                above.unlink()
        if ref.is_dir():
            shutil.rmtree(ref)

    def tidy(self) -> None:
        """Remove the folders that have become empty."""
        refs, snapshots, blobs = (self.folder / kind for kind in ("refs", "snapshots", "blobs"))
        for folder in (*sorted(refs.rglob("*"), reverse=True), refs, snapshots, blobs, self.folder):
            with suppress(OSError):  # it is not empty, or a file
                folder.rmdir()

    def listing(self, revision: str, copies: Mapping[str, str]) -> Listing | None:
        """What the cache holds of a revision, with the hashes that the contents are named by; None
        if it holds nothing. `copies` knows the sha256 (hex) of what is a copy, and no link."""
        commit = self.commit(revision)
        if commit is None or not self.snapshot(commit).is_dir():
            return None
        folder = self.snapshot(commit)
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
        found = [cached_file(folder, name, copies.get(name, "")) for name in names]
        files = {file.name: file for file in found if file is not None}
        return Listing(Location(self.repo, commit), files)


def cached_file(folder: Path, name: str, known: str = "") -> RemoteFile | None:
    """A snapshot's file by its link, or by its `known` hash where it is a copy since the disk has
    no links; None for what is no file, is hidden, or of no known hash."""
    pointer = folder / name
    if not client.plain(name) or not pointer.is_file():
        return None
    size = pointer.stat().st_size
    held = pointer.readlink().name if pointer.is_symlink() else known
    if SHA256.fullmatch(held):
        return RemoteFile(name, size, sha256=held)
    return RemoteFile(name, size, git_sha1=held) if COMMIT.fullmatch(held) else None
