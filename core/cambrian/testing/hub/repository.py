"""Repositories in memory: commits of whole trees, branches, tags and pull requests."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from cambrian.testing.hub.wire import Body

COMMIT = re.compile(r"[0-9a-f]{40}")
SHORT = re.compile(r"[0-9a-f]{7,39}")
PIECE = 1 << 20


class StaleParent(Exception):
    """The branch has moved on since the parent that a commit names."""


@dataclass(frozen=True)
class Blob:
    """A file's content. `oid` is what git calls it: of the pointer, if the file is under LFS."""

    body: Body
    sha256: str
    git_sha1: str
    lfs: bool = False
    xet: str | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.body.size

    @property
    def pointer(self) -> bytes:
        """The small file that git holds in place of an LFS file."""
        return (
            "version https://git-lfs.github.com/spec/v1\n"
            f"oid sha256:{self.sha256}\nsize {self.size}\n"
        ).encode()

    @property
    def oid(self) -> str:
        """The git object's name: 40 hex."""
        return git_sha1(Body.of(self.pointer)) if self.lfs else self.git_sha1

    @property
    def etag(self) -> str:
        """The name that the client's cache gives to the content."""
        return self.sha256 if self.lfs else self.git_sha1


def git_sha1(body: Body) -> str:
    """The git blob's name."""
    digest = hashlib.sha1(b"blob %d\0" % body.size, usedforsecurity=False)
    for start in range(0, body.size, PIECE):
        digest.update(body.read(start, min(start + PIECE, body.size)))
    return digest.hexdigest()


def blob_of(content: bytes | Path, lfs: bool) -> Blob:
    """Hash a content; a file is not copied and must stay as it is."""
    body = Body.of(content) if isinstance(content, bytes) else Body.file(content)
    digest = hashlib.sha256()
    for start in range(0, body.size, PIECE):
        digest.update(body.read(start, min(start + PIECE, body.size)))
    return Blob(body, digest.hexdigest(), git_sha1(body), lfs)


@dataclass(frozen=True)
class Commit:
    """A whole tree at a moment: files by path, in order of their names."""

    sha: str
    parent: str | None
    title: str
    date: datetime
    files: Mapping[str, Blob]


class Repository:
    """A repository of one kind ("models", "datasets" or "spaces"); it begins with an empty commit.

    `is_lfs(path, size)` says which files are stored under LFS. `gated` is False, "auto" or
    "manual". `lock` is the server's: every change takes it. File names are not checked here, so
    that a test can have a hostile one.
    """

    def __init__(
        self,
        name: str,
        is_lfs: Callable[[str, int], bool],
        lock: threading.RLock,
        *,
        kind: str = "models",
        private: bool = False,
        gated: bool | str = False,
    ) -> None:
        self.name, self.kind, self.private = name, kind, private
        self.gated: bool | str = "auto" if gated is True else gated
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.pulls: dict[int, str] = {}
        self._is_lfs, self._lock = is_lfs, lock
        self._record("refs/heads/main", None, {}, "initial commit")

    @property
    def head(self) -> str:
        """The commit that main stands at."""
        return self.branches["main"]

    @property
    def url_path(self) -> str:
        """The path of the repository's page."""
        return f"/{self.name}" if self.kind == "models" else f"/{self.kind}/{self.name}"

    def commit(
        self,
        files: Mapping[str, bytes | Path | None],
        revision: str = "main",
        parent_commit: str | None = None,
        title: str = "",
    ) -> str:
        """Add, replace and (where the content is None) delete files; return the new commit.

        KeyError if there is no such branch or file, StaleParent if `parent_commit` is not its head.
        """
        changes = {
            path: None if content is None else blob_of(content, self._is_lfs(path, length(content)))
            for path, content in files.items()
        }
        return self.commit_blobs(changes, revision, parent_commit, title)

    def commit_blobs(
        self,
        changes: Mapping[str, Blob | None],
        revision: str,
        parent_commit: str | None = None,
        title: str = "",
    ) -> str:
        """As `commit`, of contents that are hashed already."""
        with self._lock:
            ref = self._ref(revision)
            parent = self.commits[self.find(ref)]
            if parent_commit not in {None, parent.sha}:
                raise StaleParent(f"{revision} is at {parent.sha}, not at {parent_commit}")
            tree = dict(parent.files)
            for path, blob in changes.items():
                if blob is None:
                    del tree[path]
                else:
                    tree[path] = blob
            return self._record(ref, parent.sha, tree, title)

    def pull_request(
        self, changes: Mapping[str, Blob | None], revision: str, parent: str | None, title: str
    ) -> int:
        """Commit to a new refs/pr/N that begins at `revision`; return N."""
        number = len(self.pulls) + 1
        self.pulls[number] = self.find(revision)
        try:
            self.commit_blobs(changes, f"refs/pr/{number}", parent, title)
        except (KeyError, StaleParent):
            del self.pulls[number]
            raise
        return number

    def tag(self, name: str, revision: str = "main") -> None:
        """Name a commit; KeyError if there is no such revision."""
        with self._lock:
            self.tags[name] = self.find(revision)

    def branch(self, name: str, revision: str = "main") -> None:
        """Begin (or move) a branch at a revision; KeyError if there is none."""
        with self._lock:
            self.branches[name] = self.find(revision)

    def files(self, revision: str = "main") -> Mapping[str, Blob]:
        """The tree of a revision; KeyError if there is none."""
        return self.commits[self.find(revision)].files

    def find(self, revision: str) -> str:
        """The commit of a branch, tag, refs/… name, or (shortened) commit; KeyError if none."""
        if revision in self.commits:
            return revision
        known = self.refs()
        for ref in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if ref in known:
                return known[ref]
        matches = [sha for sha in self.commits if sha.startswith(revision)]
        if SHORT.fullmatch(revision) and len(matches) == 1:
            return matches[0]
        raise KeyError(revision)

    def refs(self) -> dict[str, str]:
        """Every full name and its commit."""
        return {
            **{f"refs/heads/{name}": sha for name, sha in self.branches.items()},
            **{f"refs/tags/{name}": sha for name, sha in self.tags.items()},
            **{f"refs/pr/{number}": sha for number, sha in self.pulls.items()},
        }

    def history(self, revision: str) -> list[Commit]:
        """The commits of a revision, the latest first; KeyError if there is none."""
        found: list[Commit] = []
        sha: str | None = self.find(revision)
        while sha is not None:
            found.append(self.commits[sha])
            sha = found[-1].parent
        return found

    def _ref(self, revision: str) -> str:
        """The full name of what can be committed to: a branch or a pull request."""
        ref = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
        if ref not in self.refs() or ref.startswith("refs/tags/"):
            raise KeyError(revision)
        return ref

    def _record(self, ref: str, parent: str | None, tree: dict[str, Blob], title: str) -> str:
        """Store a tree as the new head of `ref`; the same history has the same names."""
        files = {path: tree[path] for path in sorted(tree)}
        listing = "".join(f"{blob.oid} {path}\n" for path, blob in files.items())
        text = f"{self.kind}/{self.name}\n{parent}\n{title}\n{listing}"
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        now = datetime.now(UTC)
        self.commits[sha] = Commit(sha, parent, title, now, MappingProxyType(files))
        space, _, name = ref.removeprefix("refs/").partition("/")
        if space == "heads":
            self.branches[name] = sha
        else:
            self.pulls[int(name)] = sha
        return sha


def length(content: bytes | Path) -> int:
    """Bytes of a content."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size
