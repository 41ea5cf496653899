"""Old public names: they go on working for a release, and say what to write instead."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def moved(
    module: str, names: Mapping[str, tuple[str, str]], depth: int = 1
) -> Callable[[str], Any]:
    """A module's `__getattr__`: `names` maps an old name to the new one and to the version of
    Cambrian that the old one ends with. `depth` is 2 where the module's own `__getattr__` calls it.
    Plugins that use an old name as they are loaded get a note in `cambrian plugins`."""

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new, end = names[name]
        warnings.warn(
            f"{module}.{name} is now {module}.{new}; the old name ends with Cambrian {end}",
            DeprecationWarning,
            stacklevel=depth + 1,
        )
        return getattr(sys.modules[module], new)

    return find
