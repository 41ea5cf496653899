"""The command line as a person has it: a process of its own, away from the user's files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cambrian.discovery import VARIABLE, read_disabled
from cambrian.errors import BrokenFile

LONGEST = 600  # seconds that a command of a small model may take


def cambrian(folder: Path, *words: str) -> str:
    """Run `cambrian WORDS` in `folder` and return its standard output; AssertionError, with what it
    said, where it fails."""
    done = run(folder, "-m", "cambrian", *words)
    said = " ".join(done.stderr.split())[-500:]
    assert done.returncode == 0, f"cambrian {' '.join(words)} ends with {done.returncode}: {said}"
    assert "Traceback" not in done.stderr, f"cambrian {' '.join(words)} shows a traceback: {said}"
    return done.stdout


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run this Python in `folder`, offline and with its own caches and preferences."""
    own = {
        "XDG_CACHE_HOME": str(folder / "home" / "cache"),
        "XDG_CONFIG_HOME": str(folder / "home" / "config"),
        "HF_HOME": str(folder / "home" / "hf"),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "120",
        VARIABLE: ",".join(filter(None, [os.environ.get(VARIABLE, ""), *switched_off()])),
    }
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, **own},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=LONGEST,
        check=False,
    )


def switched_off() -> list[str]:
    """The plugins that the user disabled: what is wrong with them is wrong with no other."""
    try:
        return read_disabled()
    except BrokenFile:
        return []
