"""Why a plugin failed, in one sentence, and what its user can do about it."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from cambrian.discovery import Candidate


class Misfit(Exception):
    """A plugin that loads but breaks a rule of ours."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


def explain(error: BaseException, candidate: Candidate, stage: str) -> tuple[str, str]:
    """Return (reason, remedy). `stage` says when it happened: "at import", "in register_models".

    The traceback goes to standard error where CAMBRIAN_TRACEBACK is set.
    """
    if os.environ.get("CAMBRIAN_TRACEBACK"):
        traceback.print_exception(error, file=sys.__stderr__)
    module = candidate.target.partition(":")[0]
    remedy = update_or_disable(candidate.name, candidate.distribution)
    match error:
        case Misfit():
            reason, remedy = error.reason, error.remedy or remedy
        case ModuleNotFoundError(name=str(name)) if f"{module}.".startswith(f"{name}."):
            reason, remedy = f"its module '{module}' does not exist", reinstall(candidate)
        case ModuleNotFoundError(name=str(name)):
            reason = f"needs the module '{name}', which is not installed"
            remedy = f"pip install {name.partition('.')[0]}"
        case ImportError():
            reason = f"{message(error)} ({place(error)})"
        case SyntaxError():
            reason = f"syntax error in {error.filename}, line {error.lineno}: {error.msg}"
        case SystemExit():
            reason = f"exits {stage} (status {error.code!r}, {place(error)})"
        case _:
            reason = f"{type(error).__name__} {stage}: {message(error)} ({place(error)})"
    return reason, remedy


def reinstall(candidate: Candidate) -> str:
    """The remedy for an installation with parts missing."""
    return f"Reinstall it: pip install --force-reinstall {candidate.distribution}."


def update_or_disable(name: str, distribution: str) -> str:
    """The remedy that always works."""
    return (
        f"Update it (pip install --upgrade {distribution}) "
        f"or disable it (cambrian plugins disable {name})."
    )


def message(error: BaseException) -> str:
    """The exception's text on one line, even where printing it fails."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    return text[:300] or "no message"


def place(error: BaseException) -> str:
    """The file and line that raised it."""
    frames = traceback.extract_tb(error.__traceback__, limit=-1)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "no traceback"
