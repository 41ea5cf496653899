"""What a run must keep to go on as if it had never stopped.

    step-00000500/   weights.safetensors   optimizer.safetensors   [ema.safetensors]   state.json

Rates, random numbers and the order of the data are functions of the step and the seed, so the
step's number stands for all of them. Frozen parameters are those that the run began with, and a
fingerprint tells whether they still are. A folder is complete or it is not there: it is written
under a temporary name, fsynced and renamed, and older ones are removed only afterwards.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cambrian.errors import BrokenFile
from cambrian.files import PARTIAL, disk_failure, read_json, staged_folder, write_json

STEP = "step-"
STATE = "state.json"

Tensors = Mapping[str, Tensor]


def save_state(
    folder: Path, step: int, groups: Mapping[str, Tensors], facts: Mapping[str, Any]
) -> Path:
    """Write a state folder and remove the older ones; CambrianError if the disk refuses."""
    target = folder / f"{STEP}{step:08d}"
    try:
        with staged_folder(target) as staging:
            for name, tensors in groups.items():
                save_file(
                    {key: value.detach().cpu().contiguous() for key, value in tensors.items()},
                    staging / f"{name}.safetensors",
                )
            write_json(staging / STATE, {"step": step, **facts})
    except OSError as error:
        raise disk_failure(error, f"the checkpoint {target}; the one before is intact") from error
    except SafetensorError as error:  # safetensors reports a full disk as an error of its own
        raise BrokenFile(
            f"Cannot write the checkpoint {target} ({error}); the one before is intact. "
            "Free some disk space and resume."
        ) from error
    for old in saved_states(folder):
        if old != target:
            # Renamed first: a kill in the middle must not leave what looks like a state.
            doomed = old.with_name(f".{old.name}{PARTIAL}old")
            old.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
    return target


def fingerprint(tensors: Tensors) -> str:
    """A sha256 of tensors and their names, by which they are known again."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def saved_states(folder: Path) -> list[Path]:
    """The complete state folders, oldest first."""
    return sorted(path for path in folder.glob(f"{STEP}*") if (path / STATE).is_file())


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed run left half-written."""
    for path in folder.glob(f".*{PARTIAL}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def load_state(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read a state folder: tensors by group, and the facts."""
    facts = read_json(folder / STATE)
    try:
        groups = {file.stem: load_file(file) for file in sorted(folder.glob("*.safetensors"))}
    except (SafetensorError, OSError) as error:
        raise BrokenFile(
            f"{folder} is damaged ({error}); remove it to go on from an earlier state or afresh."
        ) from error
    return groups, facts
