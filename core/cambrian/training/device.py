"""Which device, which precision, and the settings of torch that go with them."""

from __future__ import annotations

import os
import random
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from cambrian.config import TrainConfig
from cambrian.errors import UsageError


def choose_device(name: str) -> torch.device:
    """Return the named device, or for "auto" the best there is; UsageError if it is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"Device '{name}' cannot be used here ({reason}); use device=auto or device=cpu."
        ) from error
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype to compute in; "auto" takes bfloat16 where there is hardware for it."""
    if name == "auto":
        return torch.bfloat16 if fast_bfloat16(device) else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported()  # pyright: ignore[reportPrivateUsage]
    return False


@contextmanager
def torch_settings(config: TrainConfig) -> Generator[None]:
    """Set torch's global switches for a run, and put them back."""
    matmul = torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    switches: Any = torch.utils.deterministic  # its stub lacks the attribute
    fill = switches.fill_uninitialized_memory
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it once
        torch.use_deterministic_algorithms(True)
        # Filling fresh memory guards against reading it before writing; it is not needed for
        # equal results here and costs a pass over every temporary.
        switches.fill_uninitialized_memory = False
    torch.set_float32_matmul_precision(config.matmul)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.use_deterministic_algorithms(deterministic)
        switches.fill_uninitialized_memory = fill


def seed_step(seed: int, step: int, device: torch.device) -> None:
    """Seed every generator that a step on the device may draw from.

    What a step draws thus depends on the run's seed and its own number only, and a resumed run
    draws the same without any generator's state having been saved.
    """
    word = int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
    random.seed(word)
    np.random.seed(word)
    if device.type == "cpu":
        torch.default_generator.manual_seed(word)
    else:  # also seeds every device, which costs time even where there is none
        torch.manual_seed(word)
