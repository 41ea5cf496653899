"""For all tests: one thread a process, and no files of the user's."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# The models here are tiny: a second thread waits more than it works, and test processes run beside
# each other. Processes that tests start inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Ctrl-C is among what is tested; what runs in a shell's background was told to ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    """Caches and preferences in a temporary place, the Hub out of reach."""
    root: Path = tmp_path_factory.mktemp("home")
    own = {
        "XDG_CACHE_HOME": str(root / "cache"),
        "XDG_CONFIG_HOME": str(root / "config"),
        "HF_HOME": str(root / "hf"),
        "HF_HUB_OFFLINE": "1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own.items():
            patch.setenv(name, value)
        yield
