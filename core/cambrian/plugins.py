"""Loads plugins one by one; whatever one of them does wrong becomes a row, never a crash.

Each plugin is imported, registered and called on its own. A failed import leaves nothing
behind; a hook is all or nothing, and a plugin's other hooks go on. What a plugin prints is kept
off standard output, which belongs to results.
"""

from __future__ import annotations

import importlib
import io
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from functools import cache, reduce
from typing import Any, Literal, NamedTuple, TypeVar, cast

import pluggy

from cambrian import __version__, hookspecs
from cambrian.contributions import HOOKS, PROVIDES, checked, described
from cambrian.diagnosis import Misfit, explain, message, reinstall, update_or_disable
from cambrian.discovery import Candidate, blocked, discover
from cambrian.errors import nearest

T = TypeVar("T")
Status = Literal["ok", "broken", "blocked", "clash", "unsupported"]


class Plugin(NamedTuple):
    """A plugin and how it fares.

    `status` is "ok", "broken" (failed or broke a rule), "blocked" (switched off by the user),
    "clash" (two plugins claim one name) or "unsupported" (made for other versions of Cambrian).
    `registers` names what its hooks gave so far.
    """

    name: str
    distribution: str
    version: str
    status: Status = "ok"
    reason: str = ""
    remedy: str = ""
    registers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"{self.name} ({self.distribution} {self.version})"


class Plugins:
    """The loaded plugins. Results of hooks are kept for the life of the object."""

    def __init__(
        self, candidates: Iterable[Candidate], off: Mapping[Candidate, tuple[str, str]]
    ) -> None:
        self._manager = pluggy.PluginManager("cambrian")
        self._manager.add_hookspecs(hookspecs)
        self._candidates = list(candidates)
        self._rows: list[Plugin] = []
        self._loaded: dict[int, object] = {}  # by row
        self._provided: dict[str, list[tuple[int, Any]]] = {}
        for index, candidate in enumerate(self._candidates):
            self._rows.append(
                Plugin(
                    name=candidate.name,
                    distribution=candidate.distribution,
                    version=candidate.version,
                )
            )
            if candidate in off:
                self.report(index, "blocked", *off[candidate])
            elif unfit := misfit_of_version(candidate):
                self.report(index, "unsupported", *unfit)
            elif not self._taken(index):
                self._load(index)

    @property
    def rows(self) -> tuple[Plugin, ...]:
        """Every plugin found, in the order of loading."""
        return tuple(self._rows)

    def provided(self, hook: str) -> list[tuple[int, Any]]:
        """What the plugins return from a hook: pairs of row number and spec, entry or path."""
        if hook not in self._provided:
            kinds = PROVIDES[hook]
            results = self.run(hook, lambda call: checked(call(), kinds))
            self._provided[hook] = [(row, item) for row, items in results for item in items]
            for row, item in self._provided[hook]:
                self.record(row, described(item))
        return self._provided[hook]

    def run(self, hook: str, use: Callable[[Callable[..., Any]], T]) -> list[tuple[int, T]]:
        """Apply `use` to each plugin's implementation of `hook`; those that fail are left out."""
        results: list[tuple[int, T]] = []
        implementations = getattr(self._manager.hook, hook).get_hookimpls()
        by_plugin = {
            id(implementation.plugin): implementation for implementation in implementations
        }
        for index, plugin in self._loaded.items():
            if (implementation := by_plugin.get(id(plugin))) is None:
                continue
            try:
                with self._quiet(index, f"in {hook}"):
                    results.append((index, use(implementation.function)))
            except BaseException as error:
                self._fail(index, error, f"in {hook}", f"{hook}: ")
        return results

    def record(self, row: int, what: str) -> None:
        """Add to what a plugin registers."""
        before = self._rows[row]
        self._rows[row] = before._replace(registers=(*before.registers, what))

    def report(self, row: int, status: Status, reason: str, remedy: str) -> None:
        """Mark a plugin; a second reason is put after the first."""
        before = self._rows[row]
        if before.reason:
            reason = f"{before.reason}; {reason}"
        if before.remedy not in ("", remedy):
            remedy = f"{before.remedy} {remedy}"
        worst: Status = "broken" if "broken" in (before.status, status) else status
        self._rows[row] = before._replace(status=worst, reason=reason, remedy=remedy)

    def clash(self, first: int, second: int, what: str) -> str:
        """Report that two plugins claim `what`; return a sentence that says so."""
        a, b = self._rows[first], self._rows[second]
        choices = " or ".join(
            f"`cambrian plugins disable {self._switch(row)}`" for row in (first, second)
        )
        remedy = f"Disable one: {choices}."
        self.report(first, "clash", f"{what} is also registered by {b.label}", remedy)
        self.report(second, "clash", f"{what} is also registered by {a.label}", remedy)
        sentence = f"{what} is registered by {a.label} and by {b.label}. {remedy}"
        return sentence[0].upper() + sentence[1:]

    def _switch(self, row: int) -> str:
        """What to call a plugin to disable it alone: its distribution if its name is not unique."""
        plugin = self._rows[row]
        unique = sum(other.name == plugin.name for other in self._rows) == 1
        return plugin.name if unique else plugin.distribution

    def _taken(self, index: int) -> bool:
        """Whether an earlier plugin, not blocked, has this one's name; then it is a clash row."""
        row = self._rows[index]
        for earlier in self._rows[:index]:
            if earlier.name == row.name and earlier.status not in ("blocked", "unsupported"):
                self.report(
                    index,
                    "clash",
                    f"not loaded: {earlier.label} has the same name",
                    f"Disable one: `cambrian plugins disable {earlier.distribution}` or "
                    f"`cambrian plugins disable {row.distribution}`.",
                )
                return True
        return False

    def _load(self, index: int) -> None:
        candidate = self._candidates[index]
        plugin: object = None
        try:
            if candidate.error is not None:
                raise Misfit(
                    f"the entry points of {candidate.distribution} cannot be read "
                    f"({message(candidate.error)})",
                    reinstall(candidate),
                )
            with self._quiet(index, "at import"):
                plugin = imported(candidate.target)
            if self._manager.is_registered(plugin):
                raise Misfit(f"'{candidate.target}' is registered already by another entry point")
            with self._quiet(index, "at registration"):
                register(self._manager, plugin)
            self._loaded[index] = plugin
        except BaseException as error:
            self._fail(index, error, "at import")

    def _fail(self, index: int, error: BaseException, stage: str, prefix: str = "") -> None:
        if type(error) is KeyboardInterrupt:  # a person's; a plugin's own subclass is not
            raise error
        candidate = self._candidates[index]
        reason, remedy = explain(error, candidate, stage)
        if isinstance(error, Misfit):
            reason = prefix + reason
        self.report(index, "broken", reason, remedy)

    @contextmanager
    def _quiet(self, index: int, stage: str) -> Generator[None]:
        """Keep prints and warnings off the terminal, note them, and restore the streams."""
        notes: list[str] = []
        streams = sys.stdin, sys.stdout, sys.stderr
        raw = io.BytesIO()
        own = io.TextIOWrapper(raw, encoding="utf-8", errors="replace", write_through=True)
        sys.stdout = own
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("default")
                yield
            notes += [f"warns {stage}: {message(cast(Warning, w.message))}" for w in caught[:3]]
        finally:
            if sys.stdout is not own:
                notes.append(f"replaced sys.stdout {stage} (undone)")
            sys.stdin, sys.stdout, sys.stderr = streams
            if not raw.closed and (said := raw.getvalue().decode("utf-8", "replace").split()):
                notes.append(f"prints {stage}: {' '.join(said)[:80]}")
            row = self._rows[index]
            self._rows[index] = row._replace(notes=(*row.notes, *notes))


def misfit_of_version(candidate: Candidate) -> tuple[str, str] | None:
    """Why a plugin is not for this version of Cambrian, and the remedy; None if it is, or if it
    does not say."""
    if not candidate.supports:
        return None
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    ours, wanted = Version(__version__), SpecifierSet(candidate.supports)
    if wanted.contains(ours, prereleases=True):
        return None
    reason = f"made for cambrian {wanted}, and this is {ours}"
    older = any(s.operator in (">", ">=", "~=", "==") and ours < Version(s.version.rstrip(".*"))
                for s in wanted)  # fmt: skip
    if older:
        return reason, f"Update Cambrian: pip install 'cambrian{wanted}'."
    return reason, update_or_disable(candidate.name, candidate.distribution)


def imported(target: str) -> Any:
    """Import an entry point's module and follow its attributes."""
    module, _, path = target.partition(":")
    plugin: Any = importlib.import_module(module.strip())
    names = [name for name in path.partition("[")[0].strip().split(".") if name]
    try:
        plugin = reduce(getattr, names, plugin)
    except AttributeError:
        raise Misfit(f"its module '{module}' has no attribute '{path}'") from None
    if plugin is None:
        raise Misfit(f"'{target}' is None")
    return plugin


def register(manager: pluggy.PluginManager, plugin: object) -> None:
    """Register with pluggy, or leave no trace and raise Misfit."""
    try:
        manager.register(plugin)
        check_hooks(manager, plugin)
    except BaseException as error:
        if manager.is_registered(plugin):
            manager.unregister(plugin)
        if isinstance(error, pluggy.PluginValidationError):
            raise Misfit(signature_mistake(plugin) or message(error)) from error
        raise


def check_hooks(manager: pluggy.PluginManager, plugin: object) -> None:
    """Catch what pluggy lets pass: misspelt, unmarked and missing hooks, and wrappers."""
    callers = manager.get_hookcallers(plugin) or []
    for caller in callers:
        if not caller.has_spec():
            raise Misfit(f"'{caller.name}' is no hook of Cambrian's.{nearest(caller.name, HOOKS)}")
        implementation = next(i for i in caller.get_hookimpls() if i.plugin is plugin)
        if implementation.wrapper or implementation.hookwrapper:
            raise Misfit(f"{caller.name} is a hook wrapper; Cambrian has plain hooks only")
    marked = {caller.name for caller in callers}
    for name in HOOKS:
        if name not in marked and callable(getattr(plugin, name, None)):
            raise Misfit(f"{name} is not marked", f"Write @cambrian.hookimpl above def {name}.")
    if not marked:
        raise Misfit("registers nothing: it has no hooks", f"Hooks are {', '.join(HOOKS)}.")


def signature_mistake(plugin: object) -> str:
    """Say which hook takes arguments that Cambrian does not pass."""
    for name in HOOKS:
        code = getattr(getattr(plugin, name, None), "__code__", None)
        if code is None:
            continue
        taken = code.co_varnames[: code.co_argcount]
        given = ("app",) if name == "register_commands" else ()
        if extra := [argument for argument in taken if argument not in given]:
            takes = f"the argument {given[0]}" if given else "no arguments"
            return f"{name} takes {takes}, but this one asks for {', '.join(extra)}"
    return ""


@cache
def load_plugins() -> Plugins:
    """The installed plugins, loaded once a process."""
    found = discover()
    return Plugins(found, blocked(found))
