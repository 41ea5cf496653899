"""One file from the Hub into the cache: resumed where it was cut off, hashed as it comes.

What has come stays on disk under its own name when the process dies, so that the next one, or
another, goes on there; the hash over everything is what makes that safe.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from cambrian.errors import BrokenFile, CambrianError
from cambrian.files import fsync
from cambrian.hub import client
from cambrian.hub.layout import Layout
from cambrian.hub.listing import Digest, RemoteFile
from cambrian.hub.location import Location

Report = Callable[[Mapping[str, Any]], None]
BLOCK = 1 << 20  # bytes


class Cancelled(CambrianError):
    """Another file failed, or the user interrupted; what has come stays for the next time."""


class Transfer:
    """Brings files of one location into the cache. `report` gets events from several threads:
    {"file", "done", "total"} in bytes, and {"notice"}; `stop` ends all soon. `cut_off` says why
    nothing can be fetched, if so: sizes then are the cache's own, and prove nothing."""

    def __init__(
        self,
        location: Location,
        layout: Layout,
        report: Report,
        stop: threading.Event,
        cut_off: str = "",
    ) -> None:
        self.location = location
        self.layout = layout
        self.report = report
        self.stop = stop
        self.cut_off = cut_off
        self._responses: set[Any] = set()

    def bring(self, file: RemoteFile) -> str:
        """Have the right content in the cache; return its sha256 (hex).

        What the cache holds is hashed. Content that is not what was listed is fetched anew, once;
        then BrokenFile. Another process that fetches the same file is waited for. A cache that can
        only be read has no locks.
        """
        blob = self.layout.blob(file)
        if self.layout.read_only and blob.is_file() and (found := self._hash(blob, file)):
            return found
        blob.parent.mkdir(parents=True, exist_ok=True)
        with self._locked(file):
            if blob.is_file() and (found := self._hash(blob, file)) is not None:
                return found
            if self.cut_off:
                raise BrokenFile(
                    f"{file.name} of {self.location} is damaged in the cache. {self.cut_off}"
                )
            if (found := self._download(file)) is not None:
                return found
            self.report({"notice": f"{file.name} came damaged; fetching it once more"})
            if (found := self._download(file)) is not None:
                return found
        raise BrokenFile(
            f"{file.name} of {self.location} came twice with another hash than the Hub lists; "
            "nothing was kept. The server, a proxy or the network damages it: try another network, "
            "or tell the repository's owner."
        )

    def _download(self, file: RemoteFile) -> str | None:
        """The sha256 of what came, now in the cache; None, and nothing kept, if it is damaged."""
        part = self.layout.part(file)
        digest = client.patiently(lambda: self._go_on(part, file), self.report, self._sleep)
        if not digest.fits(file):
            part.unlink()
            return None
        fsync(part)
        part.replace(self.layout.blob(file))
        return digest.sha256

    def _hash(self, blob: Path, file: RemoteFile) -> str | None:
        """The sha256 of a content in the cache; None if it is damaged."""
        with blob.open("rb") as held:
            digest = self._digest(held, file)
        if digest.fits(file):
            return digest.sha256
        if not self.cut_off:
            self.report({"notice": f"{file.name} is damaged in the cache; fetching it anew"})
        return None

    def _digest(self, held: BinaryIO, file: RemoteFile) -> Digest:
        digest = Digest(file.size)
        while block := held.read(BLOCK):
            self._require_going()
            digest.update(block)
        return digest

    def _go_on(self, part: Path, file: RemoteFile) -> Digest:
        """Append what is missing, over as many connections as bring something.

        Unreachable if one brings nothing; all that came is kept.
        """
        most = size_of(part)
        while True:
            try:
                return self._append(part, file)
            except client.RangeRefused as error:
                part.unlink(missing_ok=True)
                raise client.Unreachable(
                    f"The server holds less of {file.name} of {self.location} than it lists."
                ) from error
            except client.Unreachable:
                self._require_going()
                if size_of(part) <= most:
                    raise
                most = size_of(part)
                self.report({"notice": f"{file.name}: the connection broke; going on"})
                self._sleep(client.WAITS[0])

    def _append(self, part: Path, file: RemoteFile) -> Digest:
        with part.open("a+b") as out:
            out.seek(0)
            digest = self._digest(out, file)
            done = out.tell()
            if done > file.size:
                out.truncate(0)
                done, digest = 0, Digest(file.size)
            if done == file.size:
                self._tell(file, done)
                return digest
            headers = {"range": f"bytes={done}-"} if done else {}
            url = client.file_url(self.location, file.name)
            with client.get(url, self.location, headers) as response, self._on_the_wire(response):
                self._require_length(response, file)
                if done and response.status_code != 206:  # it ignores ranges and sends everything
                    out.truncate(0)
                    done, digest = 0, Digest(file.size)
                for chunk in response.iter_bytes():
                    self._require_going()
                    done += len(chunk)
                    if done > file.size:
                        raise BrokenFile(
                            f"{file.name} of {self.location} comes with more than the "
                            f"{file.size} bytes that the Hub lists; nothing of it is used."
                        )
                    out.write(chunk)
                    digest.update(chunk)
                    self._tell(file, done)
        if done < file.size:
            raise client.Unreachable(
                f"{file.name} of {self.location} ended after {done} of {file.size} bytes. "
                "Try again: what has come is kept."
            )
        return digest

    def _require_length(self, response: Any, file: RemoteFile) -> None:
        """BrokenFile for an answer that announces another size than was listed."""
        announced = response.headers.get("content-length", "")
        if response.status_code == 206:
            announced = response.headers.get("content-range", "").rpartition("/")[2]
        if announced.isdecimal() and announced != str(file.size):
            raise BrokenFile(
                f"{file.name} of {self.location} comes with {announced} bytes where the Hub lists "
                f"{file.size}; nothing of it is used. Try again, or tell the repository's owner."
            )

    def _tell(self, file: RemoteFile, done: int) -> None:
        self.report({"file": file.name, "done": done, "total": file.size})

    def hang_up(self) -> None:
        """Wake who waits for a server's next byte, once all is to stop."""
        for response in tuple(self._responses):
            client.hang_up(response)

    @contextmanager
    def _on_the_wire(self, response: Any) -> Generator[None]:
        self._responses.add(response)
        try:
            self._require_going()
            yield
        finally:
            self._responses.discard(response)

    def _sleep(self, seconds: float) -> None:
        self.stop.wait(seconds)
        self._require_going()

    def _require_going(self) -> None:
        if self.stop.is_set():
            raise Cancelled(f"The download of {self.location} was stopped.")

    @contextmanager
    def _locked(self, file: RemoteFile) -> Generator[None]:
        """Hold the client's lock of a content; look every second whether to stop waiting."""
        from filelock import Timeout
        from huggingface_hub.utils import WeakFileLock

        lock = self.layout.lock(file)
        lock.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            said = False
            while True:
                try:
                    stack.enter_context(WeakFileLock(lock, timeout=1))
                    break
                except Timeout:
                    self._require_going()
                    if not said:
                        self.report({"notice": f"another process fetches {file.name}; waiting"})
                    said = True
            yield


def size_of(path: Path) -> int:
    """In bytes; 0 if there is none."""
    return path.stat().st_size if path.exists() else 0
