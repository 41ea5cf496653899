"""How fast a run goes: units a second, time left, and what share of the GPU's peak it uses."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode

# Dense bfloat16 peaks in FLOP/s, from the vendor's data sheets (without sparsity).
PEAK = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
}


class Throughput:
    """Counts units between reports; on a GPU also counts one step's arithmetic."""

    def __init__(self, device: torch.device, unit: str) -> None:
        self.device, self.unit = device, unit
        self.peak = peak_flops(device)
        self.flops = 0
        self.steps = 0
        self.units = 0
        self.idle = 0.0
        self.since = time.perf_counter()
        self.counted = self.peak is None

    @contextmanager
    def counting_flops(self) -> Generator[None]:
        """Count the first step's floating-point operations, where the peak is known."""
        if self.counted:
            yield
            return
        with FlopCounterMode(display=False) as counter:
            yield
        self.flops += counter.get_total_flops()

    @contextmanager
    def paused(self) -> Generator[None]:
        """Leave out the time of evaluations and checkpoints."""
        start = time.perf_counter()
        yield
        self.idle += time.perf_counter() - start

    def add(self, units: int) -> None:
        """Count a step."""
        self.counted = True
        self.steps += 1
        self.units += units

    def figures(self) -> dict[str, float]:
        """Units a second, seconds a step, and MFU since the last call."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        seconds = max(now - self.since - self.idle, 1e-9)
        figures = {
            f"{self.unit}_per_second": round(self.units / seconds, 1),
            "seconds_per_step": round(seconds / max(self.steps, 1), 6),
        }
        if self.peak is not None and self.flops:
            figures["mfu"] = round(self.flops * self.steps / seconds / self.peak, 4)
        self.since, self.idle, self.steps, self.units = now, 0.0, 0, 0
        return figures


def peak_flops(device: torch.device) -> float | None:
    """The device's bfloat16 peak; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK.items() if key in name), None)
