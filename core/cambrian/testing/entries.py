"""What every named model must keep: its settings make a model of the architecture it names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cambrian.registry import load_registry
from cambrian.specs import Entry

EntryCheck = Callable[[Entry, Path], None]


def check_settings_make_a_model(entry: Entry, folder: Path) -> None:
    """Its architecture is registered, its settings fit, and a model of them can be laid out (on
    torch's meta device, which takes no memory)."""
    import torch

    registry = load_registry()
    assert not (why := registry.unavailable(entry)), why
    resolved = registry.resolve(entry.name)
    assert resolved.spec is not None
    config, _ = registry.settings(resolved)
    with torch.device("meta"):
        model = resolved.spec.model.load()(config)
    assert any(True for _ in model.parameters()), "it has no parameters"


def check_it_says_what_it_is(entry: Entry, folder: Path) -> None:
    """A summary; and where it has weights, under which licence, and their hashes."""
    assert entry.summary, "summary is empty"
    if entry.weights:
        assert entry.license, f"license is empty, and {entry.weights} are somebody's weights"
        assert entry.files, f"files is empty: nobody can tell whether {entry.weights} changed"


ENTRY_CHECKS: tuple[EntryCheck, ...] = (check_settings_make_a_model, check_it_says_what_it_is)
