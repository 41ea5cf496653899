"""A Hugging Face Hub on this machine, for tests: the protocol, with faults to order.

    from cambrian.testing.hub import Fault, LoopbackHub, User

    with LoopbackHub() as hub:
        hub.users["hf_alice"] = User("alice", can_write=True)
        repo = hub.create("alice/tiny", license="mit")
        pin = repo.commit({"config.json": b"{}", "model.safetensors": folder / "model.safetensors"})
        hub.fault(r"model\\.safetensors", Fault(cut_after=1000))
        subprocess.run([...], env=hub.environment(folder / "home"))
        assert hub.bytes_sent(r"model\\.safetensors") > 1000

It serves plain HTTP on two ports of 127.0.0.1: the Hub, and a CDN, another origin, to which files
under LFS are redirected. It needs the standard library only. Source of the protocol: what
huggingface_hub 2.4 sends and reads.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from cambrian.testing.hub import routes
from cambrian.testing.hub.faults import Fault, Faults
from cambrian.testing.hub.repository import Blob, Commit, Repository, StaleParent
from cambrian.testing.hub.server import Server
from cambrian.testing.hub.site import LFS_SUFFIXES, Site, User
from cambrian.testing.hub.wire import Record

__all__ = ["Blob", "Commit", "Fault", "LoopbackHub", "Record", "Repository", "StaleParent", "User"]


class LoopbackHub:
    """The Hub between `with` and its end; files and repositories live no longer.

    A file is under LFS if it is longer than `lfs_threshold` bytes or its name ends as one of
    `lfs_suffixes`. A tree is listed by pages of `page_size`. `xet` is a folder for xet's own
    storage of files, which the client then uses; without it the Hub has none, and a client that
    does not know so must be told by HF_HUB_DISABLE_XET=1, as `environment` does.
    """

    def __init__(
        self,
        *,
        lfs_threshold: int = 1 << 20,
        lfs_suffixes: tuple[str, ...] = LFS_SUFFIXES,
        page_size: int = 1000,
        xet: Path | None = None,
    ) -> None:
        self._site = Site(lfs_threshold, lfs_suffixes, page_size, xet)
        self._faults = Faults()
        self._log: list[Record] = []

    def __enter__(self) -> LoopbackHub:
        self._uploads = tempfile.TemporaryDirectory(prefix="loopback-hub-")
        self._site.folder = Path(self._uploads.name)
        self._servers = [
            Server(
                origin,
                lambda record, content: routes.answer(self._site, record, content),
                self._faults,
                self._log,
            )
            for origin in ("hub", "cdn")
        ]
        self._site.endpoint, self._site.cdn = (server.url for server in self._servers)
        return self

    def __exit__(self, *error: object) -> None:
        for server in self._servers:
            server.stop()
        self._uploads.cleanup()

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT should be: http://127.0.0.1:PORT."""
        return self._site.endpoint

    @property
    def cdn(self) -> str:
        """The other origin, where files under LFS are."""
        return self._site.cdn

    @property
    def users(self) -> dict[str, User]:
        """The users by their tokens; any other token is answered 401."""
        return self._site.users

    @users.setter
    def users(self, users: dict[str, User]) -> None:
        self._site.users = users

    def create(
        self,
        name: str,
        *,
        kind: str = "models",
        private: bool = False,
        gated: bool | str = False,
        license: str | None = None,
    ) -> Repository:
        """A new repository "owner/name", with a README.md that names the licence if one is given.

        ValueError if there is one of this name. `gated` is False, True or "auto", or "manual".
        """
        with self._site.lock:
            if (kind, name) in self._site.repositories:
                raise ValueError(f"there is {name} among the {kind} already")
            repository = self._site.add(name, kind=kind, private=private, gated=gated)
            if license is not None:
                card = f"---\nlicense: {license}\n---\n# {name}\n"
                repository.commit({"README.md": card.encode()})
            return repository

    def repository(self, name: str, kind: str = "models") -> Repository:
        """A repository that was created here or by a client; KeyError if there is none."""
        return self._site.repositories[kind, name]

    @property
    def requests(self) -> list[Record]:
        """The requests so far, in the order they came."""
        return list(self._log)

    def clear(self) -> None:
        """Forget the requests so far."""
        self._log.clear()

    def matching(self, pattern: str) -> list[Record]:
        """The requests whose line ("GET hub /path?query") the regular expression finds."""
        return [record for record in self.requests if re.search(pattern, record.line)]

    def bytes_sent(self, pattern: str = "") -> int:
        """The bytes of the bodies that GET requests were answered with."""
        return sum(record.sent for record in self.matching(pattern) if record.method == "GET")

    def fault(self, pattern: str, fault: Fault, times: int | None = 1) -> None:
        """Have the next requests whose line ("GET cdn /path") the regular expression finds suffer
        a fault: `times` of them, all if None. The first fault in force that matches acts alone."""
        re.compile(pattern)
        self._faults.add(pattern, fault, times)

    def heal(self) -> None:
        """Lift every fault."""
        self._faults.clear()

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """The environment of a child process that sees this Hub, with its cache in `home`, and
        nothing of the user's own cache, tokens, settings or proxies."""
        foreign = ("HF_", "HUGGING_FACE_", "HUGGINGFACE_")
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(foreign) and not name.lower().endswith("_proxy")
        }
        return {
            **kept,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            **({} if self._site.xet else {"HF_HUB_DISABLE_XET": "1"}),
            **({"HF_TOKEN": token} if token else {}),
        }
