"""What Cambrian keeps on this disk, who names it, and what of it can go."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cambrian import hub
from cambrian.errors import NotFound, UsageError
from cambrian.files import PARTIAL, cache_folder
from cambrian.hub import LOCK, Location, Lock
from cambrian.hub import cache as disk
from cambrian.hub.cache import Held, Part
from cambrian.hub.layout import KEEP, Layout
from cambrian.hub.record import VERIFIED, Record, record_path
from cambrian.registry import Registry, load_registry
from cambrian.torch_files import CONVERTED, conversions, is_intact

DAY = 86_400.0  # seconds
LOCKED = " (lock)"
RUNNING = "it is being downloaded now"


@dataclass(frozen=True)
class Cache:
    """All that is ours. `root` is the Hub's cache; `abandoned` is what killed processes left
    half-written, and refs on commits that are gone; `others` are folders and files of our own cache
    beside records and converted weights: tokens, and what plugins keep."""

    root: Path
    commits: tuple[Held, ...]
    parts: tuple[Part, ...]
    records: Mapping[Path, Record | None]
    converted: tuple[Path, ...]
    abandoned: tuple[Path, ...]
    others: tuple[Path, ...]

    @classmethod
    def scan(cls) -> Cache:
        """As it is now; whatever is not there is empty."""
        root, own = Layout.of("").root, cache_folder("")
        beside = [path for path in sorted(own.glob("*")) if path.name not in (VERIFIED, CONVERTED)]
        return cls(
            root,
            tuple(disk.commits(root)),
            tuple(disk.parts(root)),
            disk.records(),
            tuple(conversions()),
            (*disk.dangling(root), *half_written(root)),
            tuple(beside),
        )

    def of(self, targets: Iterable[str]) -> Cache:
        """The part of it that belongs to names and addresses; NotFound for one without any."""
        registry = load_registry()
        found = [self._of(target, registry) for target in targets]
        commits = tuple(held for held in self.commits if any(held in part[0] for part in found))
        sums = {sha256 for held in commits for sha256 in sha256s(held.record)}
        return replace(
            self,
            commits=commits,
            parts=tuple(part for part in self.parts if any(part in some[1] for some in found)),
            records={},
            converted=tuple(file for file in self.converted if file.stem in sums),
            abandoned=(),
            others=(),
        )

    def _of(self, target: str, registry: Registry) -> tuple[list[Held], list[Part]]:
        uri = registry.resolve(target).uri
        if uri is None:
            raise UsageError(f"'{target}' has no weights on a Hub; see `cambrian cache`.")
        location = hub.parse_uri(uri)
        layout, revision = Layout(self.root, location.repo), location.revision
        at = layout.commit(revision)
        commits = [
            held
            for held in self.commits
            if held.layout == layout
            and ("@" not in uri or held.commit == at or begins(held.commit, revision))
        ]
        parts = [part for part in self.parts if part.layout == layout]
        if not commits and ("@" in uri or not parts):
            raise NotFound(f"Cambrian keeps nothing of {uri} here; see `cambrian cache`.")
        return commits, parts

    @property
    def bytes(self) -> int:
        """What all of it takes; each content counts once."""
        own = [*self.records, *self.converted, *self.abandoned, *self.loose]
        return disk.bytes_of([*self.hub_files, *own])

    @property
    def hub_files(self) -> list[Path]:
        """Ours in the Hub's cache."""
        return [*(p for h in self.commits for p in h.files.values()), *(p.path for p in self.parts)]

    @property
    def loose(self) -> list[Path]:
        """The files of `others`."""
        return [file for path in self.others for file in files_below(path)]


def half_written(root: Path) -> list[Path]:
    """Temporary files beside records, converted weights and refs that nobody wrote to for a day."""
    found = [p for n in (VERIFIED, CONVERTED) for p in cache_folder(n).glob(f".*{PARTIAL}*")]
    found += root.glob(f"models--*--*/refs/**/.*{PARTIAL}*")
    return [path for path in sorted(found) if time.time() - disk.modified(path) > DAY]


def begins(commit: str, revision: str) -> bool:
    """Whether a revision is the beginning of a commit's hash, as lists show it."""
    return len(revision) >= 7 and commit.startswith(revision)


def files_below(path: Path) -> list[Path]:
    """A file, or all in a folder."""
    return [p for p in [path, *path.rglob("*")] if p.is_file() and not p.is_symlink()]


def sha256s(record: Record | None) -> list[str]:
    """The sha256 (hex) of the files of a record."""
    return [] if record is None else [file.sha256 for file in record.files.values()]


def named(commits: Sequence[Held]) -> dict[Location, list[str]]:
    """Who names a commit: entries of the registry, and the project's lock as "NAME (lock)"."""
    names: dict[Location, list[str]] = {held.location: [] for held in commits}
    layouts = {held.layout.repo: held.layout for held in commits}
    for entry in load_registry().entries.values():
        with suppress(UsageError):  # no weights, or an address that nothing can be of
            where = hub.parse_uri(entry.weights)
            if where.repo in layouts:
                commit = layouts[where.repo].commit(where.revision) or ""
                names.get(Location(where.repo, commit), []).append(entry.name)
    for name, pin in Lock.read(Path.cwd() / LOCK).models.items():
        names.get(pin.location, []).append(name + LOCKED)
    return names


@dataclass(frozen=True)
class Damage:
    """What is wrong, and what to do about it."""

    what: str
    why: str
    remedy: str


def check(cache: Cache, report: hub.Report) -> list[Damage]:
    """Hash the kept commits and the converted weights; asks no network."""
    found: list[Damage] = []
    names = named(cache.commits)
    for held, name, why in disk.check(cache.commits, report):
        # A name knows its architecture, which config.json may not tell.
        target = next(iter(names[held.location]), str(held.location)).removesuffix(LOCKED)
        remedy = f"cambrian pull {target} --verify"
        found.append(Damage(f"{held.location}: {name}", why, remedy))
    for file in cache.converted:
        if not is_intact(file, file.stem):
            found.append(Damage(str(file), "it is damaged", f"rm {file}"))
    return found


@dataclass(frozen=True)
class Removal:
    """Something that can go: `what` it is, its name, the bytes that this frees. `paths` go in their
    order, if nobody holds the `lock`, for a commit those of its repository."""

    what: str
    name: str
    bytes: int
    paths: tuple[Path, ...]
    lock: Path | None = None
    held: Held | None = None

    def carry_out(self) -> Removal | None:
        """Delete it, and tell what went; None if a download holds it. OSError passes."""
        if self.held is None:
            with disk.held_lock(self.lock) as free:
                return self._delete() if free else None
        layout = self.held.layout
        with disk.held_repository(layout) as free:
            # What was pulled since may need some of it.
            done = drop_alone(layout, self.held.commit)._delete() if free else None
        layout.tidy()
        return done

    def _delete(self) -> Removal:
        for path in self.paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        return self


@dataclass(frozen=True)
class Plan:
    """What can go, what must stay of it, and what could not be deleted: each (name, why)."""

    removals: tuple[Removal, ...]
    stays: tuple[tuple[str, str], ...]
    failed: tuple[tuple[str, str], ...] = ()

    @property
    def bytes(self) -> int:
        """What it frees."""
        return sum(removal.bytes for removal in self.removals)


def plan(targets: Sequence[str] = (), *, everything: bool = False) -> Plan:
    """What to delete: what belongs to `targets`; `everything` of ours; by default only what is of
    no use to anybody: unfinished downloads, records and converted weights without a source."""
    cache = Cache.scan()
    if targets and everything:
        raise UsageError("Names and --all exclude each other.")
    if targets:
        chosen = cache.of(targets)
    else:
        chosen = cache if everything else replace(cache, commits=(), others=())
    unfinished, running = drop_parts(chosen.parts)
    dropped, stays = drop_commits(chosen.commits)
    removals, stays = unfinished + dropped, running + stays
    gone = {path for removal in removals for path in removal.paths}
    for file, record in chosen.records.items():
        if file not in gone and (everything or disk.useless(file, record, cache.root)):
            removals.append(removal("record", file))
            gone.add(file)
    known = sources(cache, gone)
    for file in chosen.converted:
        if everything or file.stem not in known:
            removals.append(removal("converted", file))
    removals += [removal("leftover", path) for path in chosen.abandoned]
    removals += [removal("cache", path) for path in chosen.others]
    return Plan(tuple(removals), tuple(stays))


def removal(what: str, path: Path) -> Removal:
    """The removal of a file or folder that is ours alone."""
    return Removal(what, str(path), disk.bytes_of(files_below(path)), (path,))


def sources(cache: Cache, gone: set[Path]) -> set[str]:
    """The sha256 (hex) of what weights may have been converted from: the contents in the Hub's
    cache, and what records know, without what will be `gone`."""
    blobs = {path.name for path in cache.root.glob("models--*/blobs/*") if path not in gone}
    kept = [record for file, record in cache.records.items() if file not in gone]
    return blobs | {sha256 for record in kept for sha256 in sha256s(record)}


def drop_parts(chosen: Sequence[Part]) -> tuple[list[Removal], list[tuple[str, str]]]:
    """How to delete unfinished downloads, and those that are running."""
    removals: list[Removal] = []
    stays: list[tuple[str, str]] = []
    for part in chosen:
        name = f"hf://{part.layout.repo}: {part.path.name[:12]}"
        with disk.held_lock(part.lock) as free:
            if free:
                removals.append(Removal("download", name, part.bytes, (part.path,), part.lock))
            else:
                stays.append((name, RUNNING))
    return removals, stays


def drop_commits(chosen: Sequence[Held]) -> tuple[list[Removal], list[tuple[str, str]]]:
    """How to delete commits, and those that must stay. What another commit needs stays, and so do
    the files of a commit in which another program has some too: of it only our ref goes."""
    removals: list[Removal] = []
    stays: list[tuple[str, str]] = []
    for layout in dict.fromkeys(held.layout for held in chosen):
        mine = [held for held in chosen if held.layout == layout]
        with disk.held_repository(layout) as free:
            pass  # whether it is so still, the removal asks
        if not free:
            stays += [(str(held.location), RUNNING) for held in mine]
            continue
        alone = [held for held in mine if not held.strangers]
        stays += [
            (str(held.location), f"another program has files in it ({held.strangers[0]})")
            for held in mine
            if held.strangers
        ]
        needed = needed_blobs(layout, {held.commit for held in alone})
        for held in mine:
            blobs = {p for p in held.files.values() if p not in needed} if held in alone else set()
            needed |= blobs  # two of them may share one
            removals.append(drop(held, blobs))
    return removals, stays


def needed_blobs(layout: Layout, doomed: set[str]) -> set[Path]:
    """The contents that the commits of a repository name, but for the doomed ones."""
    snapshots = [path.name for path in layout.snapshot("").glob("*") if path.name not in doomed]
    return {path for commit in snapshots for path in disk.contents(layout, commit).values()}


def drop_alone(layout: Layout, commit: str) -> Removal:
    """The removal of a commit as it now is, with what no other commit needs."""
    held = disk.look_into(layout, commit)
    needed = set(held.files.values()) if held.strangers else needed_blobs(layout, {commit})
    return drop(held, set(held.files.values()) - needed)


def drop(held: Held, blobs: set[Path]) -> Removal:
    """The removal of a commit: our ref and record; and where no other program is in it, all refs on
    it, its folder, and the contents that nothing else needs."""
    layout, refs = held.layout, (KEEP + held.commit[:12],)
    folder: tuple[Path, ...] = ()
    if not held.strangers:
        refs, folder = (*refs, *held.refs), (layout.snapshot(held.commit),)
    own = [path for path in blobs if path.parent == layout.folder / "blobs"]
    if folder:  # a ref that a killed process left half-written
        own += layout.folder.glob(f"refs/**/.*{PARTIAL}*")
    # A link leads to the client's store of shared contents, which the client itself sweeps.
    size = disk.bytes_of(path for path in blobs if not path.is_symlink())
    paths = (
        record_path(layout, held.commit),
        *(layout.folder / "refs" / ref for ref in refs),
        *folder,
        *own,
    )
    return Removal("commit", str(held.location), size, paths, held=held)


def prune(planned: Plan, say: Callable[[Removal], None]) -> Plan:
    """Carry a plan out; `say` is told of each removal. Returns what was done, and what was not."""
    done: list[Removal] = []
    stays, failed = list(planned.stays), list(planned.failed)
    for each in planned.removals:
        try:
            went = each.carry_out()
        except OSError as error:
            failed.append((each.name, error.strerror or str(error)))
            continue
        if went is not None:
            done.append(went)
            say(went)
        else:
            stays.append((each.name, RUNNING))
    return Plan(tuple(done), tuple(stays), tuple(failed))
