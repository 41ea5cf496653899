"""Errors a user can act on: every message says what happened, why, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class CambrianError(Exception):
    """A failure with one clear sentence for the user; the command line exits with `exit_code`."""

    exit_code = 1


class UsageError(CambrianError):
    """The request itself is wrong (a name, an option, a config key): exit code 2."""

    exit_code = 2


class NotFound(UsageError):
    """No model, data set, folder or plugin has this name."""


class BrokenFile(CambrianError):
    """A file exists but is not what it should be: truncated, malformed or tampered with."""


class Rejected(CambrianError):
    """Numbers that do not equal those they are held to within tolerance."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest of `known`, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""


def listed(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
