"""cambrian env"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

PACKAGES = (
    "cambrian",
    "torch",
    "numpy",
    "safetensors",
    "huggingface-hub",
    "tokenizers",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "pluggy",
    "typer",
    "msgspec",
    "transformers",
)


def env(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show versions and hardware, to be put into a report.

    Reads the packages' metadata and imports none of them.

    \b
    Examples:
      cambrian env
      cambrian env --json
    """
    facts = environment()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    pad = max(len(key) for key in facts)
    for key, value in facts.items():
        typer.echo(f"{key.ljust(pad)}  {value}")


def environment() -> dict[str, Any]:
    """What matters in a report, by name."""
    facts: dict[str, Any] = {
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "cpu": cpu(),
        "cores": usable_cores(),
        "memory": memory(),
        "gpu": gpu(),
    }
    for package in PACKAGES:
        facts[package] = version(package)
    for variable in sorted(os.environ):
        if variable.startswith("CAMBRIAN_"):
            facts[variable] = os.environ[variable]
    return facts


def version(package: str) -> str:
    """A package's version, by its metadata."""
    try:
        return metadata.version(package)
    except Exception:  # not installed, or its metadata is broken
        return "not installed"


def cpu() -> str:
    """The processor's model."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> str:
    """Physical memory."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return "unknown"
    return f"{total / 2**30:.1f} GiB"


def gpu() -> str:
    """What nvidia-smi says, if it is there."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "none (no nvidia-smi)"
    query = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            [program, *query], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi fails ({error})"
    lines = "; ".join(done.stdout.split("\n")).strip("; ")
    return lines or f"nvidia-smi fails (status {done.returncode})"
