"""What in the Hub's cache is ours: commits that a ref of ours keeps, and unfinished downloads.

Other programs use the same cache. Of a kept commit's files those are ours that its record names or,
where there is none, those that have the names that a model needs; all others are strangers, and so
is what lay there before. The client's own scan is of no use here: it leaves out a repository as
soon as one link in it dangles.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from cambrian.files import cache_folder
from cambrian.hub.layout import KEEP, PART, SHA256, Layout
from cambrian.hub.listing import BESIDE, Digest, RemoteFile
from cambrian.hub.location import COMMIT, Location
from cambrian.hub.record import VERIFIED, Record, record_path, state
from cambrian.hub.transfer import BLOCK, Report, size_of

REF = re.compile(rf"{KEEP}[0-9a-f]{{12}}", re.ASCII)
OURS = (*BESIDE, "*.safetensors", "*.bin")


@dataclass(frozen=True)
class Held:
    """A commit that we keep. `files` has where the content of each of ours is, or should be;
    `strangers` are the names of what another program put there, also if we need it, too. `refs` are
    those of the refs on it that are not ours. `used` is when one of the files was last read, as far
    as the disk notes that (seconds)."""

    layout: Layout
    commit: str
    files: Mapping[str, Path]
    strangers: tuple[str, ...]
    refs: tuple[str, ...]
    record: Record | None
    used: float

    @property
    def location(self) -> Location:
        """Where it is from."""
        return Location(self.layout.repo, self.commit)

    @property
    def bytes(self) -> int:
        """What its files take."""
        return bytes_of(self.files.values())

    @property
    def verified(self) -> bool:
        """Whether it came to its end, verified, and nothing has changed since."""
        folder = self.layout.snapshot(self.commit)
        known = self.record.files if self.record is not None else {}
        return bool(known) and all(held.fresh(folder / name) for name, held in known.items())


@dataclass(frozen=True)
class Part:
    """What has come of a file, and the lock that its download holds."""

    layout: Layout
    path: Path
    bytes: int

    @property
    def lock(self) -> Path:
        """Who holds it is downloading."""
        return self.layout.locks / f"{self.path.name.removesuffix(PART)}.lock"


def commits(root: Path) -> list[Held]:
    """The commits in the cache at `root` that we keep, by repository."""
    found: list[Held] = []
    for ref in sorted(root.glob(f"models--*--*/refs/{KEEP}*")):
        layout = layout_of(ref.parent.parent)
        commit = layout.commit(ref.name)
        named = commit is not None and ref.name == KEEP + commit[:12]
        if commit is not None and named and layout.snapshot(commit).is_dir():
            found.append(look_into(layout, commit))
    return found


def dangling(root: Path) -> list[Path]:
    """Refs of ours on commits that somebody has deleted; for the client they spoil a repository."""
    found: list[Path] = []
    for ref in sorted(root.glob(f"models--*--*/refs/{KEEP}*")):
        layout = layout_of(ref.parent.parent)
        commit = layout.commit(ref.name)
        if not REF.fullmatch(ref.name):  # somebody's branch is called so
            continue
        if commit is None or not layout.snapshot(commit).is_dir():
            found.append(ref)
    return found


def parts(root: Path) -> list[Part]:
    """The downloads of ours that were cut off, or are running."""
    found = sorted(root.glob(f"models--*--*/blobs/*{PART}"))
    return [Part(layout_of(path.parent.parent), path, size_of(path)) for path in found]


def layout_of(folder: Path) -> Layout:
    """The repository that a folder of the cache is of."""
    return Layout(folder.parent, folder.name.removeprefix("models--").replace("--", "/"))


def look_into(layout: Layout, commit: str) -> Held:
    """A commit that we keep, as it lies on the disk."""
    record = Record.read(layout, commit)
    there = contents(layout, commit)
    if record is not None and record.files:
        folder = layout.snapshot(commit)
        files = {name: there.get(name, folder / name) for name in record.files}
    else:
        files = {n: p for n, p in there.items() if any(fnmatchcase(n, o) for o in OURS)}
        files = {name: path for name, path in files.items() if "/" not in name}
    before = record.strange if record is not None else ()
    strangers = tuple(sorted(n for n in there if n in before or n not in files))
    refs = tuple(ref for ref in refs_on(layout, commit) if ref != KEEP + commit[:12])
    read = [0.0]
    for path in files.values():
        with suppress(OSError):
            read.append(path.stat().st_atime)
    return Held(layout, commit, files, strangers, refs, record, max(read))


def contents(layout: Layout, commit: str) -> dict[str, Path]:
    """Where the content of each file of a commit is, whether it is there or not."""
    folder = layout.snapshot(commit)
    return {
        path.relative_to(folder).as_posix(): content(layout, path)
        for path in sorted(folder.rglob("*"))
        if (path.is_symlink() or path.is_file())
        and not (path.name.startswith(".") and path.name.endswith(".link"))
    }


def content(layout: Layout, pointer: Path) -> Path:
    """The blob that a snapshot's file names; the file itself if it names none of its repository,
    as where the disk knows no links."""
    if pointer.is_symlink():
        target = pointer.readlink()
        blob = layout.folder / "blobs" / target.name
        if os.path.normpath(pointer.parent / target) == os.path.normpath(blob):
            return blob
    return pointer


def refs_on(layout: Layout, commit: str) -> list[str]:
    """The names of all refs that are at a commit."""
    root = layout.folder / "refs"
    names = [file.relative_to(root).as_posix() for file in sorted(root.rglob("*"))]
    return [name for name in names if layout.commit(name) == commit]


def records() -> dict[Path, Record | None]:
    """The records of all caches; None is one that cannot be read."""
    return {file: Record.open(file) for file in sorted(cache_folder(VERIFIED).glob("*.json"))}


def useless(file: Path, record: Record | None, root: Path) -> bool:
    """Whether a record is damaged, or of a commit that is no longer in this cache. A commit of
    another cache (HF_HOME on another disk) may be there again tomorrow, and so may all of them if
    this one is empty: its disk may not be mounted."""
    if record is None:
        return True
    if not any(root.glob("models--*")):
        return False
    layout = Layout(root, record.repo)
    ours = file == record_path(layout, record.commit)
    return ours and not layout.snapshot(record.commit).is_dir()


def bytes_of(paths: Iterable[Path]) -> int:
    """What files take; a content with several names counts once, a missing one nothing."""
    found: dict[tuple[int, int], int] = {}
    for path in paths:
        with suppress(OSError):
            device, inode, size, _ = state(path)
            found[device, inode] = size
    return sum(found.values())


def others(root: Path, ours: Iterable[Path]) -> tuple[int, int]:
    """How many contents in the cache are not among `ours`, and their bytes."""
    known = {path.resolve() for path in ours}
    found = [*root.glob("*/blobs/*"), *root.glob("blobs/*/*")]  # the client's, and its shared ones
    left = [path for path in found if path.is_file() and not path.is_symlink()]
    left = [path for path in left if path.resolve() not in known]
    return len(left), bytes_of(left)


def modified(path: Path) -> float:
    """When it was last written to (seconds); now, if it has just gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()


@contextmanager
def held_lock(lock: Path | None) -> Generator[bool]:
    """Hold a lock of the client, if there is one; yields whether nobody else does."""
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock

    if lock is None or not lock.exists():  # whoever downloads has made it
        yield True
        return
    manager = WeakFileLock(lock, timeout=0.02)
    try:
        manager.__enter__()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        manager.__exit__(None, None, None)


@contextmanager
def held_repository(layout: Layout) -> Generator[bool]:
    """Hold all locks of a repository; yields whether nothing of it is being downloaded."""
    with ExitStack() as stack:
        locks = sorted(layout.locks.glob("*.lock"))
        yield all(stack.enter_context(held_lock(lock)) for lock in locks)


def check(chosen: Sequence[Held], report: Report) -> Generator[tuple[Held, str, str]]:
    """Hash the files of commits, each content once; asks no network. Yields (commit, name, why)
    for each that is not what it should be. `report` gets {"file", "done", "total"} in bytes."""
    seen: dict[Path, RemoteFile | str] = {}
    for path in {path for held in chosen for path in held.files.values()}:
        report({"file": str(path), "done": 0, "total": size_of(path)})
    for held in chosen:
        for name, path in sorted(held.files.items()):
            if path not in seen:
                seen[path] = hashed(path, report)
            if why := difference(held, name, path, seen[path]):
                yield held, name, why


def hashed(path: Path, report: Report) -> RemoteFile | str:
    """A file's size and both hashes, or why it cannot be read."""
    try:
        with path.open("rb") as file:
            size, done = os.fstat(file.fileno()).st_size, 0
            digest = Digest(size)
            while block := file.read(BLOCK):
                digest.update(block)
                done += len(block)
                report({"file": str(path), "done": done, "total": size})
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return RemoteFile(path.name, size, digest.sha256, digest.git_sha1)


def difference(held: Held, name: str, path: Path, found: RemoteFile | str) -> str:
    """Why a content is not what its name and the record say, or an empty string."""
    if isinstance(found, str):
        return found
    known = held.record.files.get(name) if held.record is not None else None
    if known is not None and found.size != known.size:
        return f"it has {found.size} bytes instead of {known.size}"
    named = {64: found.sha256, 40: found.git_sha1}.get(len(path.name), path.name)
    hexadecimal = SHA256.fullmatch(path.name) or COMMIT.fullmatch(path.name)
    if (hexadecimal and named != path.name) or (known and known.sha256 != found.sha256):
        return "its hash is another than it should be"
    return ""
