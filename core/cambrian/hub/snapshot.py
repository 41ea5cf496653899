"""A repository at a revision as a local folder, every file of which was hashed."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from cambrian.errors import BrokenFile, CambrianError
from cambrian.files import JSON_LIMIT, disk_failure, read_json
from cambrian.hub import client, listing
from cambrian.hub.layout import Layout
from cambrian.hub.listing import Listing, RemoteFile
from cambrian.hub.location import Location
from cambrian.hub.lock import Pin, PinnedFile
from cambrian.hub.record import Record, Verified, state
from cambrian.hub.transfer import Report, Transfer, size_of
from cambrian.weight_files import Header, header, header_size, parse_header

THREADS = 4
CONFIG = "config.json"


def silent(event: Mapping[str, Any]) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Snapshot:
    """A verified folder: what it is a copy of, and the sha256 and size of each of its files."""

    folder: Path
    location: Location
    files: Mapping[str, Verified]
    license: str = ""


@dataclass(frozen=True)
class Plan:
    """What a fetch would do: the files it needs, and those of them that are not in the cache.
    `folder` is where they would lie."""

    listing: Listing
    folder: Path
    needed: tuple[RemoteFile, ...]
    missing: tuple[RemoteFile, ...]


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is wanted of a repository.

    `hashes` are the sha256 that files must have, by name, and `sizes` their bytes. `only` names all
    the files there may be (a lock's); without it the model's weights and what lies beside them are
    taken, the weights by the first of `weights` that is there. `accept` looks at config.json before
    anything large comes, and raises where the model is none that can be used.
    """

    hashes: Mapping[str, str] = field(default_factory=dict[str, str])
    only: tuple[str, ...] | None = None
    weights: Sequence[str] = listing.WEIGHTS
    accept: Callable[[Path], object] = lambda file: None
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])


def fetch(
    location: Location,
    wish: Wish | None = None,
    *,
    report: Report = silent,
    rehash: bool = False,
) -> Snapshot:
    """Return a folder with what is wanted, downloading what the cache lacks.

    A pinned revision that was verified before asks nobody and hashes nothing, unless `rehash`.
    Without a network, or with HF_HUB_OFFLINE, the cache must hold everything. Raises BrokenFile for
    content that is not what was expected, UsageError for a name that does not exist, CambrianError
    for every other failure; nothing unverified is ever returned.
    """
    wish = wish or Wish()
    layout = Layout.of(location.repo)
    try:
        if location.pinned and not rehash:
            record = Record.read(layout, location.revision)
            if record is not None and satisfied(layout, record, wish):
                if CONFIG in record.files:  # it may have been verified for another architecture
                    wish.accept(layout.snapshot(record.commit) / CONFIG)
                return snapshot_of(layout, record)
        worker = Worker(look(location, layout, report), layout, wish, report, rehash)
        record = worker.finish(location.revision)
        found = snapshot_of(layout, record)
        if all(held.fresh(found.folder / name) for name, held in found.files.items()):
            return found
        raise CambrianError(
            f"Somebody deleted or changed files of {location} in the cache while it was fetched; "
            "fetch it again."
        )
    except OSError as error:
        raise disk_failure(error, f"{location} into {layout.root}") from error


def plan(location: Location, wish: Wish | None = None, *, report: Report = silent) -> Plan:
    """What `fetch` would bring; this itself brings no more than config.json and an index."""
    layout = Layout.of(location.repo)
    found = look(location, layout, report)
    try:
        needed = Worker(found, layout, wish or Wish(), silent).needed()
    except OSError as error:
        raise disk_failure(error, f"{location} into {layout.root}") from error
    missing = [file for file in needed if not layout.holds(file)]
    return Plan(found, layout.snapshot(found.location.revision), tuple(needed), tuple(missing))


def pin(location: Location, wish: Wish | None = None, *, report: Report = silent) -> Pin:
    """What exactly is wanted at a location now, without its weights: the Hub tells the sha256 of
    what is large; what is small is fetched and hashed.

    It is the Hub's word or none: what the cache holds may be a part, or damaged. Raises as `fetch`,
    and CambrianError if the Hub cannot be asked.
    """
    if client.offline():
        raise client.Unreachable(
            f"{location} is locked as the Hub lists it, and HF_HUB_OFFLINE is set. Unset it."
        )
    client.warn_of_plain_http(report)
    listed = client.patiently(lambda: client.list_files(location), report)
    layout = Layout.of(location.repo)
    try:
        worker = Worker(listed, layout, wish or Wish(), report)
        needed = worker.needed()
        for file in needed:
            worker.require(file, file.sha256)
        small = worker.bring([file for file in needed if file.sha256 is None])
    except OSError as error:
        raise disk_failure(error, f"{location} into {layout.root}") from error
    files = {
        file.name: PinnedFile(file.size, file.sha256 or small[file.name].sha256) for file in needed
    }
    found = listed.location
    return Pin(found.repo, found.revision, files, worker.license, location.revision)


def weights_header(location: Location, file: RemoteFile) -> Header:
    """The header of a safetensors file: of the cache's, else of the Hub's by two requests for
    ranges of it."""
    layout = Layout.of(location.repo)
    if layout.holds(file):
        return header(layout.blob(file))
    where = f"{file.name} of {location}"
    url = client.file_url(location, file.name)

    def first(count: int) -> bytes:
        """The first bytes of the file."""
        wanted = {"range": f"bytes=0-{count - 1}"}
        return client.patiently(lambda: client.read(url, location, count, wanted))

    size = header_size(first(min(64, file.size)), file.size, where)
    return parse_header(first(size), file.size, where)


def look(location: Location, layout: Layout, report: Report = silent) -> Listing:
    """What is at a location: the Hub's word or, if it cannot be reached, the cache's, and then
    `report` is told so."""
    cached = cache_holds(location.revision, layout)
    if client.offline():
        if cached is None:
            raise client.Unreachable(
                f"{location} is not in the cache ({layout.root}), and HF_HUB_OFFLINE is set. Unset "
                "it, or fetch the model while there is a network."
            )
        return replace(cached, cut_off="HF_HUB_OFFLINE is set: unset it to fetch the rest.")
    client.warn_of_plain_http(report)
    try:
        if cached is not None:
            return client.list_files(location)
        return client.patiently(lambda: client.list_files(location), report)
    except client.Unreachable as error:
        if cached is None:
            raise
        report({"notice": f"{client.reason(error)}; using {cached.location} of the cache"})
        return replace(cached, cut_off=str(error))


def cache_holds(revision: str, layout: Layout) -> Listing | None:
    """What is in the cache. Where the disk has no links, the record knows the hashes of files."""
    commit = layout.commit(revision)
    record = Record.read(layout, commit) if commit is not None else None
    known = {name: held.sha256 for name, held in record.files.items()} if record else {}
    return layout.listing(revision, known)


def satisfied(layout: Layout, record: Record, wish: Wish) -> bool:
    """Whether all that is wanted was verified and has not changed since."""
    folder, files = layout.snapshot(record.commit), record.files
    whole = record.weights == tuple(wish.weights)
    return (
        (whole if wish.only is None else set(wish.only) <= files.keys())
        and all(n in files and files[n].sha256 == h for n, h in wish.hashes.items())
        and all(n in files and files[n].size == size for n, size in wish.sizes.items())
        and all(held.fresh(folder / name) for name, held in files.items())
    )


def snapshot_of(layout: Layout, record: Record) -> Snapshot:
    """The folder that a record speaks of."""
    folder = layout.snapshot(record.commit)
    return Snapshot(folder, Location(layout.repo, record.commit), record.files, record.license)


class Worker:
    """Brings the files of one listing into the cache and into the commit's folder."""

    def __init__(
        self,
        found: Listing,
        layout: Layout,
        wish: Wish,
        report: Report,
        rehash: bool = False,
    ) -> None:
        self.found = found
        self.layout = layout
        self.wish = wish
        self.report = report
        self.folder = layout.snapshot(found.location.revision)
        self.before = record = Record.read(layout, found.location.revision)
        self.license = found.license or (record.license if record else "")
        self.known = dict(record.files) if record is not None and not rehash else {}

    def finish(self, revision: str) -> Record:
        """Bring everything, note the commit under `revision`, and keep what was verified."""
        needed, commit = self.needed(), self.found.location.revision
        files = self.bring(needed)
        self.layout.name_commit(commit, revision)
        whole = self.wish.only is None and not self.found.cut_off
        weights = tuple(self.wish.weights) if whole else ()
        strange = self.before.strange if self.before is not None else ()
        record = Record(self.layout.repo, commit, files, self.license, weights, strange)
        kept = record
        if self.before is not None and not whole:  # a part must not make a whole forgotten
            kept = replace(self.before, files={**self.before.files, **files})
        kept.write(self.layout)
        return record

    def needed(self) -> list[RemoteFile]:
        """The wanted files. Brings config.json, and the index or manifest that tells what else
        there is."""
        only = self.wish.only
        names = listing.beside(self.found) if only is None else list(only)
        if CONFIG in names:
            self._bring_one(CONFIG)
            self.wish.accept(self.folder / CONFIG)
        if only is None:
            names = [*self._with_weights(names), *self._known_before()]
        return listing.require(self.found, sorted({*names, *self.wish.hashes}))

    def _known_before(self) -> Iterable[str]:
        """What was verified of the commit once, where nobody can be asked what else there is."""
        if not self.found.cut_off:
            return ()
        if self.before is None or not self.before.weights:
            where = self.found.location
            self.report({"notice": f"what the cache holds of {where} is taken for all of it"})
        return self.before.files if self.before is not None else ()

    def _with_weights(self, names: list[str]) -> list[str]:
        if listing.MANIFEST in names:
            files = self._read(listing.MANIFEST).get("files")
            return [*names, *(cast(dict[str, Any], files) if isinstance(files, dict) else ())]
        weights = listing.weights(self.found, self.wish.weights)
        if not weights.endswith(listing.INDEX):
            return [*names, weights]
        table = self._read(weights).get("weight_map")
        found = cast(dict[str, Any], table).values() if isinstance(table, dict) else ()
        shards = {str(shard) for shard in found}
        if outside := sorted(shard for shard in shards if "/" in shard):
            raise BrokenFile(
                f"{weights} of {self.found.location} names {outside[0]!r}; shards lie beside their "
                "index, and nothing else is fetched."
            )
        return [*names, weights, *shards]

    def _read(self, name: str) -> dict[str, Any]:
        self._bring_one(name)
        return read_json(self.folder / name)

    def _bring_one(self, name: str) -> None:
        files = listing.require(self.found, [name])
        if (size := files[0].size) > JSON_LIMIT:
            raise BrokenFile(
                f"{name} of {self.found.location} has {size:,} bytes; more than {JSON_LIMIT:,} "
                "cannot be right, and none of it was fetched."
            )
        self.known |= self.bring(files)

    def bring(self, files: Sequence[RemoteFile]) -> dict[str, Verified]:
        """Have all files verified and linked into the commit's folder."""
        for file in files:
            self.require(file, file.sha256)
        self._require_space(files)
        self._claim()
        stop = threading.Event()
        transfer = Transfer(self.found.location, self.layout, self.report, stop, self.found.cut_off)
        pool = ThreadPoolExecutor(THREADS)
        try:
            jobs = {file.name: pool.submit(self._one, transfer, file) for file in files}
            wait(jobs.values(), return_when=FIRST_EXCEPTION)
            for job in jobs.values():
                if job.done():
                    job.result()  # the first failure is raised here, and stops the others
            return {name: job.result() for name, job in jobs.items()}
        except KeyboardInterrupt as error:
            error.add_note("what has come is kept, and the next attempt goes on there")
            raise
        finally:
            stop.set()
            transfer.hang_up()
            pool.shutdown(cancel_futures=True)

    def _claim(self) -> None:
        """Make what comes ours, whatever happens, but not what another program fetched before."""
        commit = self.found.location.revision
        paths = [path for path in self.folder.rglob("[!.]*") if not path.is_dir()]
        there = tuple(sorted(path.relative_to(self.folder).as_posix() for path in paths))
        if self.layout.keeps(commit):
            return
        before = self.before or Record(self.layout.repo, commit, {}, self.license)
        if there != before.strange:
            self.before = replace(before, strange=there)
            self.before.write(self.layout)
        self.layout.name_commit(commit, commit)

    def _one(self, transfer: Transfer, file: RemoteFile) -> Verified:
        path = self.folder / file.name
        known = self.known.get(file.name)
        if known is not None and known.fresh(path):
            self.require(file, known.sha256)
            return known
        digest = transfer.bring(file)
        self.require(file, digest)
        self.layout.point(self.found.location.revision, file)
        return Verified(digest, file.size, state(path))

    def require(self, file: RemoteFile, sha256: str | None) -> None:
        """BrokenFile if a file has another size or sha256 than was expected of it."""
        size = self.wish.sizes.get(file.name, file.size)
        if size != file.size:
            raise BrokenFile(
                f"{file.name} of {self.found.location} has {file.size:,} bytes, but the lock says "
                f"{size:,}; nothing was loaded. Take the lock that was committed, or make it anew."
            )
        expected = self.wish.hashes.get(file.name)
        if expected is not None and sha256 is not None and sha256 != expected:
            raise BrokenFile(
                f"{file.name} of {self.found.location} has sha256 {sha256}, but {expected} is "
                "expected; nothing was loaded. Either the repository was tampered with, or the "
                "registry or the lock is wrong."
            )

    def _require_space(self, files: Sequence[RemoteFile]) -> None:
        """CambrianError if the disk cannot take what is still to come."""
        layout = self.layout
        layout.root.mkdir(parents=True, exist_ok=True)
        missing = [file for file in files if not layout.holds(file)]
        bytes_to_come = sum(file.size - size_of(layout.part(file)) for file in missing)
        free = shutil.disk_usage(layout.root).free
        if bytes_to_come > free:
            raise CambrianError(
                f"{self.found.location} needs {bytes_to_come:,} bytes more, but the disk of "
                f"{layout.root} has {free:,} free. Make room, or set HF_HUB_CACHE to a folder on "
                "another disk."
            )
