"""Which plugins are installed and which of them the user has switched off; loads none.

A plugin is an entry point of the group "cambrian". Switched off are those named, by themselves
or by their distribution, in `CAMBRIAN_DISABLE_PLUGINS=a,b` ("*": every one that is not
Cambrian's own) or in config.toml, which `cambrian plugins disable NAME` writes.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, cast

from cambrian.errors import BrokenFile
from cambrian.files import own_folder

GROUP = "cambrian"
OWN = "cambrian"  # the distribution that the built-ins come with
VARIABLE = "CAMBRIAN_DISABLE_PLUGINS"
THIRD_PARTY = "*"


class Candidate(NamedTuple):
    """An entry point, found but not loaded. `target` is "package.module" or "module:attribute";
    `supports` the versions of Cambrian that its distribution asks for (">=0.1,<0.2", or nothing);
    `error` says why the distribution's own description could not be read."""

    name: str
    target: str
    distribution: str
    version: str
    supports: str = ""
    error: Exception | None = None


def config_folder() -> Path:
    """Where the user's files live: $XDG_CONFIG_HOME/cambrian or ~/.config/cambrian."""
    return own_folder("XDG_CONFIG_HOME", ".config")


def normal(name: str) -> str:
    """A name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def discover() -> list[Candidate]:
    """All candidates: Cambrian's own first, then by distribution and name."""
    seen: set[str] = set()
    found: list[Candidate] = []
    for distribution in metadata.distributions():
        try:
            text = distribution.read_text("entry_points.txt") or ""
            declared = GROUP in text  # most distributions end here, unparsed
        except (OSError, ValueError):
            declared = True
        if not declared:
            continue
        name, version = identity(distribution)
        if normal(name) not in seen:  # earlier on sys.path wins, as it does for imports
            found += candidates(distribution, name, version)
        seen.add(normal(name))
    return sorted(found, key=lambda c: (c.distribution != OWN, normal(c.distribution), c.name))


def candidates(distribution: metadata.Distribution, name: str, version: str) -> list[Candidate]:
    """A distribution's entry points in our group; one candidate with an error if unreadable."""
    try:
        points = [(p.name, p.value) for p in distribution.entry_points if p.group == GROUP]
        supports = supported(distribution) if points and normal(name) != OWN else ""
    except Exception as error:
        if distribution_mentions_group(distribution):
            return [
                Candidate(name=name, target="", distribution=name, version=version, error=error)
            ]
        return []
    return [
        Candidate(name=point, target=target, distribution=name, version=version, supports=supports)
        for point, target in points
    ]


def supported(distribution: metadata.Distribution) -> str:
    """The versions of Cambrian that a distribution requires, as it writes them: the "<0.2" of
    "Requires-Dist: cambrian<0.2". Several such lines all count; extras' do not, nor what pip
    could not read."""
    from packaging.markers import UndefinedComparison, UndefinedEnvironmentName
    from packaging.requirements import InvalidRequirement, Requirement

    found: list[str] = []
    for line in distribution.requires or ():
        try:
            wanted = Requirement(line)
            applies = wanted.marker is None or wanted.marker.evaluate()
        except (InvalidRequirement, UndefinedComparison, UndefinedEnvironmentName):
            continue
        if normal(wanted.name) == OWN and applies:
            found.append(str(wanted.specifier))
    return ",".join(filter(None, found))


def distribution_mentions_group(distribution: metadata.Distribution) -> bool:
    """Whether an undecodable entry_points.txt names our group; others' troubles are not ours."""
    file = folder_of(distribution) / "entry_points.txt"
    try:
        return re.search(rb"^\s*\[\s*cambrian\s*\]", file.read_bytes(), re.M) is not None
    except OSError:
        return False


def identity(distribution: metadata.Distribution) -> tuple[str, str]:
    """Name and version; from the folder's name where the metadata is broken or absent."""
    stem = folder_of(distribution).stem
    name, _, version = stem.partition("-")
    try:
        described = cast(Mapping[str, Any] | None, distribution.metadata) or {}
        return str(described.get("Name") or name), str(described.get("Version") or version)
    except Exception:
        return name, version


def folder_of(distribution: metadata.Distribution) -> Path:
    """The .dist-info folder; importlib.metadata has no public name for it."""
    return Path(str(getattr(distribution, "_path", "unknown")))


def blocked(found: Iterable[Candidate]) -> dict[Candidate, tuple[str, str]]:
    """The candidates that are switched off, each with the reason and the remedy.

    A malformed config.toml switches nothing off; `cambrian plugins` says so.
    """
    named = {normal(name.strip()) for name in os.environ.get(VARIABLE, "").split(",")}
    try:
        saved = {normal(name) for name in read_disabled()}
    except BrokenFile:
        saved = set[str]()
    reasons: dict[Candidate, tuple[str, str]] = {}
    for candidate in found:
        names = {normal(candidate.name), normal(candidate.distribution)}
        if names & named or (THIRD_PARTY in named and candidate.distribution != OWN):
            remedy = f"Leave --no-plugins away, or take it out of {VARIABLE}."
            reasons[candidate] = f"disabled by {VARIABLE} or --no-plugins", remedy
        elif matched := names & saved:
            remedy = f"cambrian plugins enable {min(matched)}"
            reasons[candidate] = f"disabled in {config_file()}", remedy
    return reasons


def config_file() -> Path:
    """The user's preferences."""
    return config_folder() / "config.toml"


def read_disabled() -> list[str]:
    """The names that config.toml disables; BrokenFile if it is malformed."""
    names = read_config().get("plugins", {}).get("disabled", [])
    return list(names)


def read_config() -> dict[str, Any]:
    """config.toml, with [plugins] disabled = [...] checked; empty if there is none."""
    file = config_file()
    try:
        config = tomllib.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise BrokenFile(f"Cannot read {file}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # bad TOML, bad UTF-8
        raise BrokenFile(f"{file} is not valid TOML ({error}). Mend or delete it.") from error
    plugins: Any = config.get("plugins", {})
    names: Any = plugins.get("disabled", []) if isinstance(plugins, dict) else None
    if not isinstance(names, list) or not all(isinstance(n, str) for n in cast(list[Any], names)):
        raise BrokenFile(f'{file}: write [plugins] and below it disabled = ["name", ...].')
    return config


def write_disabled(names: Iterable[str]) -> None:
    """Save the names to config.toml; everything else in it stays."""
    import tomli_w

    from cambrian.files import disk_failure, write_bytes

    config = read_config()
    config["plugins"] = {**config.get("plugins", {}), "disabled": sorted(names)}
    try:
        write_bytes(config_file(), tomli_w.dumps(config).encode())
    except OSError as error:
        raise disk_failure(error, str(config_file())) from error
