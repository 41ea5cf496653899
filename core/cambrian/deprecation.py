"""Old public names: they go on working for a release, and say what to write instead."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def moved(module: str, names: Mapping[str, tuple[str, str]]) -> Callable[[str], Any]:
    """A module's `__getattr__`: `names` maps an old name to the new one and to the version of
    Cambrian that the old one ends with. Plugins that use one get a note in `cambrian plugins`."""

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new, end = names[name]
        warnings.warn(
            f"{module}.{name} is now {module}.{new}; the old name ends with Cambrian {end}",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(sys.modules[module], new)

    return find
