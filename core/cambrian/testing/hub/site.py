"""What the loopback Hub knows: users, repositories and who may do what."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cambrian.testing.hub.repository import Blob, Commit, Repository
from cambrian.testing.hub.wire import Refusal, Request

# What the .gitattributes of a new repository on the Hub put under LFS, as far as models need it.
LFS_SUFFIXES = (".safetensors", ".bin", ".onnx", ".model")
BAD_TOKEN = "Invalid credentials in Authorization header"
NO_LOGIN = "Invalid username or password."


@dataclass
class User:
    """Whom a token stands for.

    The user owns the repositories below the own name and below `orgs`; may write to them if the
    token allows it (`can_write`); may read the private and gated ones of others that are in
    `accepted`.
    """

    name: str
    can_write: bool = False
    accepted: set[str] = field(default_factory=set[str])
    orgs: tuple[str, ...] = ()

    def owns(self, name: str) -> bool:
        """Whether a repository's owner is this user or one of the organisations."""
        return name.split("/", maxsplit=1)[0] in {self.name, *self.orgs}

    def reads(self, name: str) -> bool:
        """Whether this user has access to a private or gated repository."""
        return self.owns(name) or name in self.accepted


class Site:
    """The state that requests act on; `lock` is held around each of them."""

    def __init__(
        self, lfs_threshold: int, lfs_suffixes: tuple[str, ...], page_size: int, xet: Path | None
    ) -> None:
        self.lfs_threshold, self.lfs_suffixes = lfs_threshold, lfs_suffixes
        self.page_size, self.xet = page_size, xet
        self.users: dict[str, User] = {}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, Blob] = {}  # LFS uploads, by sha256
        self.lock = threading.RLock()
        self.endpoint = self.cdn = ""
        self.folder = Path()  # where uploads are kept

    def is_lfs(self, path: str, size: int) -> bool:
        """Whether a file goes under LFS: by its name or its size, and never an empty one."""
        return size > 0 and (size > self.lfs_threshold or path.endswith(self.lfs_suffixes))

    def add(
        self,
        name: str,
        *,
        kind: str = "models",
        private: bool = False,
        gated: bool | str = False,
    ) -> Repository:
        """A new repository with an empty commit; Refusal 409 if it exists."""
        repository = Repository(
            name, self.is_lfs, self.lock, kind=kind, private=private, gated=gated
        )
        if (kind, name) in self.repositories:
            extra = {"url": self.endpoint + repository.url_path}
            raise Refusal(409, f"You already created this {kind[:-1]} repo", extra=extra)
        self.repositories[kind, name] = repository
        return repository

    def user(self, request: Request) -> User | None:
        """Who asks; None is anonymous, and Refusal 401 answers a token that nobody has."""
        header = request.headers.get("authorization")
        if header is None:
            return None
        user = self.users.get(header.removeprefix("Bearer "))
        if user is None:
            raise Refusal(401, BAD_TOKEN)
        return user

    def repository(self, request: Request) -> Repository:
        """The repository that a path names. One that is missing and one that is private are told
        apart by nobody who has no access: Refusal 404, or 401 to the anonymous."""
        user, name = self.user(request), request.named["name"]
        found = self.repositories.get((kind_of(request.named), name))
        if found is not None and (not found.private or (user and user.reads(name))):
            return found
        if user is None:
            raise Refusal(401, NO_LOGIN, "RepoNotFound")
        raise Refusal(404, "Repository not found", "RepoNotFound")

    def readable(self, request: Request) -> Repository:
        """As `repository`, and its files may be read: Refusal 401 or 403 at a gate."""
        found, user = self.repository(request), self.user(request)
        if not found.gated or (user and user.reads(found.name)):
            return found
        what = f"Access to {found.kind[:-1]} {found.name} is restricted"
        if user is None:
            raise Refusal(401, f"{what}. Please log in.", "GatedRepo")
        raise Refusal(
            403,
            f"{what} and you are not in the authorized list. "
            f"Visit {self.endpoint}{found.url_path} to ask for access.",
            "GatedRepo",
        )

    def writable(self, request: Request, *, proposal: bool = False) -> Repository:
        """As `readable`, and it may be written to, or (a pull request) proposed to."""
        found = self.readable(request)
        self.writer(request, None if proposal else found.name)
        return found

    def writer(self, request: Request, name: str | None) -> User:
        """The user, if the token may write, and to this name: Refusal 401 or 403."""
        user = self.user(request)
        if user is None:
            raise Refusal(401, NO_LOGIN, "RepoNotFound")
        if not user.can_write:
            raise Refusal(403, "Forbidden: you must use a write token to upload to a repository.")
        if name is not None and not user.owns(name):
            owner = name.split("/")[0]
            raise Refusal(403, f'You don\'t have the rights to write under the namespace "{owner}"')
        return user


def kind_of(named: Mapping[str, str]) -> str:
    """ "models", or what the path says."""
    return named.get("kind") or "models"


def commit_at(repository: Repository, revision: str) -> Commit:
    """The commit of a revision; Refusal 404 if there is none."""
    try:
        return repository.commits[repository.find(revision)]
    except KeyError as error:
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound") from error
