"""Architectures, named models and data sets by name, from everywhere they may be declared.

Precedence, weakest first: the shipped registry.toml, plugins, the user's registry.toml (in
$XDG_CONFIG_HOME/cambrian), the project's cambrian.toml. A stronger level overrides a weaker one;
two plugins that claim one name clash, and the name is refused until one of them is disabled.

A fault costs no more than it must. A faulty table in a file is a problem row, and an error only
when its name is used. A user's or project's file that is no TOML at all is an error whenever a
name is looked up, since nobody can tell what it would have overridden. A plugin's faulty file
costs that file. A fault in the shipped file is an error at once.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from cambrian.config import Recipe, apply
from cambrian.diagnosis import update_or_disable
from cambrian.discovery import config_folder, read_disabled
from cambrian.errors import BrokenFile, CambrianError, NotFound, UsageError, nearest
from cambrian.plugins import Plugins, load_plugins
from cambrian.registry_file import HUB, Fault, Item, read_registry_file
from cambrian.specs import (
    PYTHON,
    DatasetEntry,
    Entry,
    ExporterSpec,
    ModelSpec,
    RuntimeSpec,
    TrainerSpec,
)

PROJECT = "project"  # the label of what a working folder brings
SHELVES = {"models": "model", "datasets": "data set"}
HOOK_OF = {
    "architecture": "register_models",
    "trainer": "register_trainers",
    "exporter": "register_exporters",
    "runtime": "register_runtimes",
}


class Problem(NamedTuple):
    """A row for people: what is wrong where, and what to do about it."""

    origin: str
    name: str
    reason: str
    remedy: str


class Origin(NamedTuple):
    """Where a name comes from: a short label ("user", "project", a plugin's name) and the place."""

    label: str
    place: str


class Resolved(NamedTuple):
    """What a target names. `uri` is an hf:// address, `folder` a local one; `spec` is None where
    only config.json can tell the architecture."""

    spec: ModelSpec | None = None
    entry: Entry | None = None
    folder: Path | None = None
    uri: str | None = None


class Shelf:
    """Things of one kind by name. `origins` lists the strongest first; a name is either in
    `items` or in `refused`, with the error that its use raises."""

    def __init__(self) -> None:
        self.items: dict[str, Any] = {}
        self.origins: dict[str, tuple[Origin, ...]] = {}
        self.refused: dict[str, CambrianError] = {}

    def put(self, item: Any, origin: Origin) -> None:
        """Lay an item over what had its name."""
        self.items[item.name] = item
        self.refused.pop(item.name, None)
        self._add(item.name, origin)

    def refuse(self, name: str, error: CambrianError, origin: Origin) -> None:
        """Make every use of a name an error."""
        self.items.pop(name, None)
        self.refused[name] = error
        self._add(name, origin)

    def _add(self, name: str, origin: Origin) -> None:
        self.origins[name] = (origin, *self.origins.get(name, ()))


class Registry:
    """Everything with a name. The mappings hold what can be used, `problems` the rest."""

    def __init__(self, plugins: Plugins, files: Iterable[tuple[str, Path]]) -> None:
        """`files` are (label, path), weakest first, laid over the shipped one and the plugins'.
        `faults` holds the problems of files alone."""
        self.plugins = plugins
        self.faults: list[Problem] = []
        self._unreadable: list[str] = []
        self._shelves: dict[str, Shelf] = {"model": Shelf(), "data set": Shelf()}
        self._read_shipped(shipped_file())
        self._read_plugins()
        for label, path in files:
            self._read_file(Origin(label, str(path)), path)
        self._separate_entries_from_architectures()
        try:
            read_disabled()
        except BrokenFile as error:
            self.faults.append(Problem(origin="user", name="", reason=str(error), remedy=""))

    @property
    def models(self) -> Mapping[str, ModelSpec]:
        """Architectures."""
        return self._shelf("architecture").items

    @property
    def trainers(self) -> Mapping[str, TrainerSpec]:
        """Ways to fit a model to data."""
        return self._shelf("trainer").items

    @property
    def exporters(self) -> Mapping[str, ExporterSpec]:
        """File formats to export to."""
        return self._shelf("exporter").items

    @property
    def runtimes(self) -> Mapping[str, RuntimeSpec]:
        """Engines that open folders."""
        return self._shelf("runtime").items

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Named models."""
        return self._shelf("model").items

    @property
    def datasets(self) -> Mapping[str, DatasetEntry]:
        """Named data sets."""
        return self._shelf("data set").items

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What cannot be used, and why: plugins first, then files."""
        rows = (row for row in self.plugins.rows if row.status not in ("ok", "blocked"))
        return (
            *(
                Problem(origin=r.distribution, name=r.name, reason=r.reason, remedy=r.remedy)
                for r in rows
            ),
            *self.faults,
        )

    def origins(self, kind: str, name: str) -> tuple[Origin, ...]:
        """Where a name is declared, strongest first; kinds are those of `pick`."""
        return self._shelf(kind).origins.get(name, ())

    def pick(self, kind: str, name: str) -> Any:
        """Look a name up among "model" (entries), "architecture", "data set", "trainer",
        "exporter" or "runtime"; NotFound names the nearest, a clash is a UsageError."""
        shelf = self._shelf(kind)
        self._require_usable(kind, name)
        if name not in shelf.items:
            known = ", ".join(shelf.items) or "none"
            hint = nearest(name, shelf.items)
            raise NotFound(f"There is no {kind} '{name}'.{hint} There are: {known}.")
        return shelf.items[name]

    def resolve(self, target: str) -> Resolved:
        """Find what a target names: a model, an architecture, a folder or an hf:// address.

        A registered name wins over a folder of that name; write ./name for the folder.
        """
        if target.startswith("hf://"):
            if not HUB.fullmatch(target):
                raise UsageError(f"'{target}' is no address; write hf://owner/repo@revision.")
            return Resolved(uri=target)
        if is_path(target):
            return Resolved(folder=model_folder(Path(target).expanduser()))
        for kind in ("model", "architecture"):
            self._require_usable(kind, target)
        if (entry := self.entries.get(target)) is not None:
            if why := self.unavailable(entry):
                raise NotFound(f"Model '{target}' cannot be used: {why}")
            return Resolved(
                spec=self.models[entry.architecture], entry=entry, uri=entry.weights or None
            )
        if target in self.models:
            return Resolved(spec=self.models[target])
        if target and Path(target).is_dir():
            return Resolved(folder=model_folder(Path(target)))
        raise self._miss(target)

    def unavailable(self, entry: Entry) -> str:
        """Why an entry cannot be used, or an empty string."""
        if entry.architecture in self.models:
            return ""
        return (
            f"no plugin provides its architecture '{entry.architecture}'."
            f"{nearest(entry.architecture, self.models)} See `cambrian plugins`."
        )

    def settings(self, resolved: Resolved) -> tuple[Any, Recipe]:
        """(config, recipe) of a named model: the architecture's defaults, then the entry's
        differences. UsageError if those name unknown fields or hold wrong values."""
        spec, entry = resolved.spec, resolved.entry
        if spec is None:
            raise UsageError("The settings of a folder or address are in its config.json.")
        try:
            config = spec.config()
        except Exception as error:
            raise CambrianError(
                f"The defaults of architecture '{spec.name}' do not make a config ({error}); "
                "its plugin is at fault."
            ) from error
        if entry is None:
            return config, spec.recipe
        where = f"{self.origins('model', entry.name)[0].place}, [models.{entry.name}]"
        if spec.recipe.data is None and "data" in entry.recipe:
            raise UsageError(f"{where}: architecture '{spec.name}' has no settings for data.")
        return apply(config, spec.recipe, {"model": entry.config, **entry.recipe}, where)

    def _shelf(self, kind: str) -> Shelf:
        if kind not in self._shelves:
            self._shelves[kind] = shelf = Shelf()
            owners: dict[str, int] = {}
            for row, spec in self.plugins.provided(HOOK_OF[kind]):
                self._put_equal(shelf, kind, spec, row, owners)
        return self._shelves[kind]

    def _put_equal(
        self, shelf: Shelf, kind: str, item: Any, row: int, owners: dict[str, int]
    ) -> None:
        """Put a plugin's item; if another plugin gave that name, refuse it to both."""
        plugin = self.plugins.rows[row]
        origin = Origin(plugin.name, f"plugin {plugin.label}")
        owner = owners.setdefault(item.name, row)
        if owner == row:
            shelf.put(item, origin)
        else:
            sentence = self.plugins.clash(owner, row, f"{kind} '{item.name}'")
            shelf.refuse(item.name, UsageError(sentence), origin)

    def _read_shipped(self, path: Path) -> None:
        items, faults = read_registry_file(path, "cambrian")
        if faults:
            raise BrokenFile(faults[0].reason)
        self._put_all(items, Origin("cambrian", str(path)))

    def _read_plugins(self) -> None:
        owners: dict[type, dict[str, int]] = {Entry: {}, DatasetEntry: {}}
        for row, contribution in self.plugins.provided("register_entries"):
            for item in self._items_of(row, contribution):
                kind = "data set" if isinstance(item, DatasetEntry) else "model"
                self._put_equal(self._shelves[kind], kind, item, row, owners[type(item)])

    def _items_of(self, row: int, contribution: Item | Path) -> list[Item]:
        """A plugin's entry, or those in its file; what is wrong with the file goes to its row."""
        plugin = self.plugins.rows[row]
        if not isinstance(contribution, Path):
            return [dataclasses.replace(contribution, origin=plugin.name)]
        remedy = update_or_disable(plugin.name, plugin.distribution)
        try:
            items, faults = read_registry_file(contribution, plugin.name)
        except BrokenFile as error:
            self.plugins.report(row, "broken", str(error), remedy)
            return []
        for fault in faults:
            self.plugins.report(row, "broken", fault.reason, remedy)
        return items

    def _read_file(self, origin: Origin, path: Path) -> None:
        if not path.exists():
            return
        try:
            items, faults = read_registry_file(path, origin.label)
        except BrokenFile as error:
            self._unreadable.append(str(error))
            self._fault(origin, "", str(error))
            return
        self._put_all(items, origin)
        for fault in [*faults, *self._code_of(origin, items)]:
            self._fault(origin, fault.name, fault.reason)
            if fault.name:
                shelf = self._shelves[SHELVES[fault.section]]
                shelf.refuse(fault.name, BrokenFile(fault.reason), origin)

    def _code_of(self, origin: Origin, items: Iterable[Item]) -> Iterable[Fault]:
        """Data sets of a project's file that are code: the folder may be a stranger's, and to
        look into it must not run anything."""
        for item in items if origin.label == PROJECT else ():
            if isinstance(item, DatasetEntry) and any(s.startswith(PYTHON) for s in item.source):
                yield Fault(
                    "datasets",
                    item.name,
                    f"{origin.place}: data set '{item.name}' is code ({item.source[0]}), which a "
                    "project's file may not name; write it into your own registry.toml "
                    f"({user_file()}) or into a plugin.",
                )

    def _put_all(self, items: Iterable[Item], origin: Origin) -> None:
        for item in items:
            kind = "data set" if isinstance(item, DatasetEntry) else "model"
            self._shelves[kind].put(item, origin)

    def _fault(self, origin: Origin, name: str, reason: str) -> None:
        remedy = f"Mend or delete that part of {origin.place}."
        self.faults.append(Problem(origin=origin.label, name=name, reason=reason, remedy=remedy))

    def _separate_entries_from_architectures(self) -> None:
        """An entry may be named like an architecture only if it is of that architecture."""
        shelf = self._shelves["model"]
        for name, entry in list(shelf.items.items()):
            if name in self.models and entry.architecture != name:
                mine = shelf.origins[name][0]
                theirs = self.origins("architecture", name)[0]
                reason = (
                    f"'{name}' is both an architecture ({theirs.place}) and a model of "
                    f"architecture '{entry.architecture}' ({mine.place})."
                )
                remedy = f"Rename the model, or disable the plugin {theirs.label}."
                shelf.refuse(name, UsageError(f"{reason} {remedy}"), mine)
                self.faults.append(
                    Problem(origin=mine.label, name=name, reason=reason, remedy=remedy)
                )

    def _require_usable(self, kind: str, name: str) -> None:
        """Raise the error of a name that was refused, or of a file that might hold it."""
        if error := self._shelf(kind).refused.get(name):
            raise type(error)(str(error))
        if kind in ("model", "data set") and self._unreadable:
            raise BrokenFile(self._unreadable[0])

    def _miss(self, target: str) -> NotFound | UsageError:
        owner, slash, repo = target.partition("/")
        if slash and owner and repo and HUB.fullmatch(f"hf://{target}"):
            return UsageError(
                f"'{target}' could be a repository or a folder: write hf://{target} for the "
                f"repository on the Hub, ./{target} for the folder (there is none of that name)."
            )
        hint = nearest(target, [*self.entries, *self.models])
        return NotFound(f"There is no model or folder '{target}'.{hint} See `cambrian list`.")


def is_path(target: str) -> bool:
    """Whether a target is spelt as a path: ./x, ../x, /x, ~/x, or . itself."""
    return target.startswith((".", "~", "/", os.sep)) or Path(target).is_absolute()


def model_folder(path: Path) -> Path:
    """The folder, if it is one of a model: with a config.json or a manifest.json."""
    if path.is_file():
        raise UsageError(f"{path} is a file; name the folder it is in ({path.parent}).")
    if not path.is_dir():
        raise NotFound(f"There is no folder {path}.")
    if not any((path / name).is_file() for name in ("config.json", "manifest.json")):
        raise NotFound(f"{path} is not a model's folder: no config.json, no manifest.json.")
    return path


def shipped_file() -> Path:
    """registry.toml: inside the package once installed, at the root of a checkout."""
    installed = Path(__file__).with_name("registry.toml")
    return installed if installed.is_file() else Path(__file__).parents[2] / "registry.toml"


def user_file() -> Path:
    """What the user adds, on this machine."""
    return config_folder() / "registry.toml"


def load_registry(project: Path | None = None) -> Registry:
    """The registry as seen from a project's folder (by default the working directory).

    Built once a process and folder. BrokenFile if the shipped file is broken.
    """
    return _load((project or Path.cwd()).resolve())


@cache
def _load(project: Path) -> Registry:
    files = [
        ("user", user_file()),
        (PROJECT, project / "cambrian.toml"),
    ]
    return Registry(load_plugins(), files)
