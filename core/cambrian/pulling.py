"""From a name or an address to a verified folder: registry, lock and Hub together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cambrian import hub
from cambrian.checkpoint import CONFIG, read_config, recognise
from cambrian.errors import CambrianError, UsageError, listed
from cambrian.files import disk_failure, read_json
from cambrian.hub import LOCK, Location, Lock, Pin, Plan, Report, Snapshot, Wish
from cambrian.hub.snapshot import silent
from cambrian.registry import Registry, Resolved, load_registry


@dataclass(frozen=True)
class Source:
    """Where a target's files come from, and what is wanted of them.

    `name` is what a lock calls it: an entry's name, or an address without a revision. `requested`
    is the revision that a pin must be of; "" for an address without one, which takes any.
    """

    name: str
    location: Location
    wish: Wish
    requested: str


def source_of(resolved: Resolved, registry: Registry) -> Source:
    """What the registry says of a target that has an address."""
    assert resolved.uri is not None
    location = hub.parse_uri(resolved.uri)
    spec, entry = resolved.spec, resolved.entry
    if spec is None or entry is None:
        specs = list(registry.models.values())
        known = tuple(dict.fromkeys(spec.weights_file for spec in specs))
        wish = Wish(weights=known, accept=lambda file: recognise(read_json(file), specs, file))
        return Source(f"hf://{location.repo}", location, wish, resolved.uri.partition("@")[2])
    wish = Wish(
        hashes=entry.files,
        weights=(spec.weights_file,),
        accept=lambda file: read_config(read_json(file), spec, file),
    )
    return Source(entry.name, location, wish, location.revision)


def source(target: str, registry: Registry) -> Source:
    """The same for a name or an hf:// address; UsageError for what has no weights on a Hub."""
    resolved = registry.resolve(target)
    if resolved.uri is None:
        what = "is a folder" if resolved.folder is not None else "names no weights"
        raise UsageError(f"'{target}' {what}; there is nothing to fetch from a Hub.")
    return source_of(resolved, registry)


def held_by(pin: Pin, wanted: Source, file: Path) -> Source:
    """The same source as the lock has it; CambrianError if the lock speaks of something else, or
    lacks a part of it."""
    look = "Run `cambrian lock` and look at what changed."
    if pin.repo != wanted.location.repo or not of_revision(pin, wanted):
        was = f", which was {pin.requested} then" if pin.requested not in ("", pin.revision) else ""
        if wanted.name.startswith("hf://"):
            look = f"Run `cambrian lock {wanted.location}` to have that."
        raise CambrianError(
            f"{file} pins '{wanted.name}' to {pin.location}{was}, but the registry or the address "
            f"says {wanted.location}. {look}"
        )
    for name, digest in wanted.wish.hashes.items():
        if pin.hashes.get(name, digest) != digest:
            raise CambrianError(
                f"{file} and the registry expect different contents of {name} of '{wanted.name}'. "
                f"{look}"
            )
    if not pin.files.keys() >= wanted.wish.hashes.keys() or not pin.whole(wanted.wish.weights):
        raise CambrianError(
            f"{file} lacks files that '{wanted.name}' needs; it was edited, or the registry was. "
            f"{look}"
        )
    sizes = {name: held.size for name, held in pin.files.items()}
    wish = dataclasses.replace(wanted.wish, hashes=pin.hashes, sizes=sizes, only=tuple(sizes))
    return dataclasses.replace(wanted, location=pin.location, wish=wish)


def of_revision(pin: Pin, wanted: Source) -> bool:
    """Whether a pin is of the revision that is wanted, as far as it tells."""
    if wanted.location.pinned:
        return pin.revision == wanted.location.revision
    return not wanted.requested or pin.requested in ("", wanted.requested)


def settle(wanted: Source, revision: str | None = None, locked: bool = False) -> Source:
    """A source at the named revision, or else as the project's lock has it.

    CambrianError if it is not `locked` and must be. A revision that was asked for leaves the
    registry's hashes behind, which are of another.
    """
    file = Path.cwd() / LOCK
    if revision is not None:
        if locked:
            raise UsageError("A revision and --locked exclude each other: the lock names one.")
        location = hub.parse_uri(f"hf://{wanted.location.repo}@{revision}")
        wish = dataclasses.replace(wanted.wish, hashes={})
        return Source(wanted.name, location, wish, revision)
    pin = Lock.read(file).models.get(wanted.name)
    if pin is not None:
        return held_by(pin, wanted, file)
    if locked:
        raise CambrianError(
            f"{file} does not hold '{wanted.name}'. Run `cambrian lock {wanted.name}`."
        )
    return wanted


def folder_of(resolved: Resolved, registry: Registry, report: Report = silent) -> Path:
    """The local folder of a target with an address, fetched and verified."""
    wanted = settle(source_of(resolved, registry))
    return hub.fetch(wanted.location, wanted.wish, report=report).folder


def pull(
    target: str,
    *,
    revision: str | None = None,
    locked: bool = False,
    rehash: bool = False,
    report: Report = silent,
) -> Snapshot:
    """Fetch and verify what a name or an hf:// address stands for. See `hub.fetch`."""
    wanted = settle(source(target, load_registry()), revision, locked)
    return hub.fetch(wanted.location, wanted.wish, report=report, rehash=rehash)


def plan_pull(
    target: str,
    *,
    revision: str | None = None,
    locked: bool = False,
    report: Report = silent,
) -> Plan:
    """What `pull` would fetch."""
    wanted = settle(source(target, load_registry()), revision, locked)
    return hub.plan(wanted.location, wanted.wish, report=report)


class Look(NamedTuple):
    """What can be told of a model without its weights. `parameters` counts numbers as stored, 0
    where the weights are no safetensors; `dtypes` are safetensors' names of their types."""

    plan: Plan
    config: dict[str, Any]
    parameters: int
    dtypes: tuple[str, ...]


def look_at(target: str, *, report: Report = silent) -> Look:
    """Look at a model on the Hub; of the weights only the headers are read."""
    plan = plan_pull(target, report=report)
    headers = [
        hub.weights_header(plan.listing.location, file)
        for file in plan.needed
        if file.name.endswith(".safetensors")
    ]
    tensors = [tensor for header in headers for tensor in header.tensors.values()]
    config = plan.folder / CONFIG
    return Look(
        plan,
        read_json(config) if config.is_file() else {},
        sum(math.prod(tensor.shape) for tensor in tensors),
        tuple(sorted({tensor.dtype for tensor in tensors})),
    )


def used_names(registry: Registry, held: Lock) -> list[str]:
    """What a project uses: what its cambrian.toml declares with weights, and what is locked and
    not gone."""
    declared = [
        name
        for name, entry in registry.entries.items()
        if entry.weights and registry.origins("model", name)[0].label == "project"
    ]
    return sorted({*declared, *held.models} - gone(registry, held))


def gone(registry: Registry, held: Lock) -> set[str]:
    """The locked names that no registry declares with weights any more; none where a file or a
    plugin could not be read, which may declare them."""
    if registry.problems:
        return set()
    known = {name for name in held.models if registry.origins("model", name)}
    known -= {name for name, entry in registry.entries.items() if not entry.weights}
    return {name for name in held.models if not name.startswith("hf://")} - known


def lock(
    targets: Iterable[str] = (), *, upgrade: bool = False, report: Report = silent
) -> tuple[Lock, Lock]:
    """Write cambrian.lock for the project's models and `targets`; return (before, after).

    What is pinned already and still fits stays as it is, unless `upgrade`. What is gone from
    the registry goes from the lock.
    """
    registry, file = load_registry(), Path.cwd() / LOCK
    held = Lock.read(file)
    pins: dict[str, Pin] = {}
    for wanted in to_lock(registry, held, targets):
        pin = held.models.get(wanted.name)
        if pin is None or upgrade or not fits(pin, wanted, file):
            pins[wanted.name] = hub.pin(wanted.location, wanted.wish, report=report)
    try:
        with hub.alone(file):  # another process may have locked other models meanwhile
            before = Lock.read(file)
            left = before.models.keys() - gone(registry, before)
            after = Lock({name: before.models[name] for name in left} | pins)
            if after != before:
                after.write(file)
    except OSError as error:
        raise disk_failure(error, str(file)) from error
    return before, after


def to_lock(registry: Registry, held: Lock, targets: Iterable[str]) -> list[Source]:
    """What is to be in the lock, each once. An address without a revision means the revision that
    it was locked at, if it was."""
    found = {name: source(name, registry) for name in used_names(registry, held)}
    named: dict[str, Source] = {}
    for target in targets:
        wanted = source(target, registry)
        if named.setdefault(wanted.name, wanted).location != wanted.location:
            raise UsageError(
                f"A lock holds one revision of {wanted.name}; name {wanted.location} or "
                f"{named[wanted.name].location}."
            )
    found |= named
    for name, wanted in found.items():
        pin = held.models.get(name)
        if pin is not None and pin.requested and not wanted.requested:
            location = Location(wanted.location.repo, pin.requested)
            found[name] = dataclasses.replace(wanted, location=location)
    return list(found.values())


def locked_names() -> list[str]:
    """What the project's lock holds; CambrianError if it holds nothing, or what is gone."""
    file = Path.cwd() / LOCK
    held = Lock.read(file)
    if not held.models:
        raise CambrianError(f"There is no {LOCK} here; write one with `cambrian lock NAME...`.")
    require_present(load_registry(), held, file)
    return sorted(held.models)


def require_present(registry: Registry, held: Lock, file: Path) -> None:
    """CambrianError if a lock holds what is gone."""
    if names := sorted(gone(registry, held)):
        raise CambrianError(
            f"{file} pins {listed(names)}, which nothing declares with weights any more. "
            "Run `cambrian lock` to drop that."
        )


def fits(pin: Pin, wanted: Source, file: Path) -> bool:
    """Whether a pin is still of what the registry says."""
    try:
        held_by(pin, wanted, file)
    except CambrianError:
        return False
    return True


def check_lock(targets: Iterable[str] = ()) -> Lock:
    """The project's lock, if it holds all that the project uses (and `targets`) as the registry
    has it; asks no network. CambrianError says what is missing or differs."""
    registry, file = load_registry(), Path.cwd() / LOCK
    held = Lock.read(file)
    require_present(registry, held, file)
    for target in [*used_names(registry, held), *targets]:
        settle(source(target, registry), locked=True)
    return held
