"""Shell completion of names; imports no torch and fails silently, as completion must."""

from __future__ import annotations

from collections.abc import Iterable


def complete_model(incomplete: str) -> list[str]:
    """Names of models and architectures."""
    from cambrian.registry import load_registry

    registry = load_registry()
    return starting(incomplete, [*registry.entries, *registry.models])


def complete_any(incomplete: str) -> list[str]:
    """Names of models, architectures and data sets."""
    from cambrian.registry import load_registry

    return sorted({*complete_model(incomplete), *starting(incomplete, load_registry().datasets)})


def complete_plugin(incomplete: str) -> list[str]:
    """Names of installed plugins, none of which is loaded."""
    from cambrian.discovery import discover

    return starting(incomplete, [candidate.name for candidate in discover()])


def starting(incomplete: str, names: Iterable[str]) -> list[str]:
    """Those of the names that go on from what was typed."""
    return sorted({name for name in names if name.startswith(incomplete)})
