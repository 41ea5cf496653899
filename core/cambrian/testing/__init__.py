"""The conformance kit: what every plugin must keep, for whoever writes one.

    pytest --cambrian NAME

checks the installed plugin or distribution NAME: each thing that it registers against every check
of its kind. The checks are plain functions too, `check(spec, folder)`, which raise AssertionError
with a sentence; MODEL_CHECKS and its siblings list them. `cambrian.testing.hub` is a Hugging Face
Hub on this machine, for tests of one's own.

Names are imported when they are first used: whoever wants the Hub alone gets no numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cambrian.deprecation import moved

if TYPE_CHECKING:
    from cambrian.testing.entries import ENTRY_CHECKS
    from cambrian.testing.examples import (
        built,
        example,
        example_settings,
        first_batch,
        prepared,
        train_example,
        trained_example,
    )
    from cambrian.testing.exporters import EXPORTER_CHECKS
    from cambrian.testing.models import MODEL_CHECKS
    from cambrian.testing.plugins import PLUGIN_CHECKS
    from cambrian.testing.runtimes import RUNTIME_CHECKS
    from cambrian.testing.trainers import TRAINER_CHECKS

_HOMES = {
    "entries": "ENTRY_CHECKS",
    "examples": "built example example_settings first_batch prepared train_example trained_example",
    "exporters": "EXPORTER_CHECKS",
    "models": "MODEL_CHECKS",
    "plugins": "PLUGIN_CHECKS",
    "runtimes": "RUNTIME_CHECKS",
    "trainers": "TRAINER_CHECKS",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}
_old = moved(__name__, {"CHECKS": ("MODEL_CHECKS", "0.2")}, depth=2)

__all__ = [
    "ENTRY_CHECKS",
    "EXPORTER_CHECKS",
    "MODEL_CHECKS",
    "PLUGIN_CHECKS",
    "RUNTIME_CHECKS",
    "TRAINER_CHECKS",
    "built",
    "example",
    "example_settings",
    "first_batch",
    "prepared",
    "train_example",
    "trained_example",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        return _old(name)
    return getattr(importlib.import_module(f"cambrian.testing.{home}"), name)
