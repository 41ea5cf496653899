"""Distributions with a plugin, as pip would leave them, for tests that need some installed."""

from __future__ import annotations

from pathlib import Path

from cambrian import registry
from cambrian.plugins import load_plugins
from cambrian.testing.examples import trained_example
from cambrian.testing.exported import example_folder, example_model, exported_example, new_model
from cambrian.testing.trainers import base_for, tuned_example

TESTS = Path(__file__).parent


def install(site: Path, name: str, source: str = "", requires: str = "cambrian>=0.1") -> None:
    """A distribution with one plugin, whose module is `source` unless that is elsewhere."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "entry_points.txt").write_text(f"[cambrian]\n{name} = {name}\n")
    wanted = f"Requires-Dist: {requires}\n" if requires else ""
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{wanted}")
    if source:
        (site / f"{name}.py").write_text(source)


def forget() -> None:
    """Have this process look anew which plugins there are."""
    for cached in (
        load_plugins,
        registry._load,
        trained_example,
        example_model,
        new_model,
        exported_example,
        example_folder,
        base_for,
        tuned_example,
    ):
        cached.cache_clear()
