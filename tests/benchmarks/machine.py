"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path


def describe_machine(*distributions: str) -> str:
    """The processor, the cores this process may use, and the versions that matter."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        flags = next((x for x in info.read_text().splitlines() if x.startswith("flags")), "")
        cpu = names[0].partition(":")[2].strip() if names else cpu
        cpu += ", AVX512-BF16" if "avx512_bf16" in flags else ""
    names = "cambrian", *distributions
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cpu}; {cores} cores; Python {platform.python_version()}; {versions}"
