"""What `cambrian list`, `plugins`, `info` and `--help` cost beside a two-command Typer program.

    python tests/benchmarks/bench_startup.py [repeats]

Medians of runs that take turns, so that a busy machine disturbs all alike; a warm-up round is not
counted. The program that runs a command is compared with the same program's command, and its
--help with --help. Exit status 1 if a median exceeds its peer by more than the budget.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

BUDGET = 0.060  # seconds
PEER = """
import typer

app = typer.Typer()


@app.command()
def one() -> None:
    print("one")


@app.command()
def two(name: str) -> None:
    print(name)


app()
"""


def seconds(command: list[str], folder: str) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    took = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{command} exits {done.returncode}: {done.stderr}")
    return took


def main(repeats: int = 15) -> int:
    """Measure, print a table, and say whether the budget is kept."""
    program = str(Path(sys.executable).with_name("cambrian"))
    with tempfile.TemporaryDirectory() as folder:
        peer = Path(folder) / "peer.py"
        peer.write_text(PEER)
        os.environ["XDG_CONFIG_HOME"] = folder
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled
        commands = {
            "typer: a command": [sys.executable, str(peer), "two", "x"],
            "typer: --help": [sys.executable, str(peer), "--help"],
            "cambrian list": [program, "list"],
            "cambrian list 'gpt*'": [program, "list", "gpt*"],
            "cambrian info gpt2": [program, "info", "gpt2"],
            "cambrian plugins": [program, "plugins"],
            "cambrian --help": [program, "--help"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(repeats + 1):
            for name, command in commands.items():
                took = seconds(command, folder)
                if turn:
                    times[name].append(took)
    medians = {name: statistics.median(values) for name, values in times.items()}
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("cambrian", "typer"))
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{versions}; medians of {repeats} runs; at most {BUDGET * 1e3:.0f} ms over the peer")
    late = 0
    for name, median in medians.items():
        peer_name = "typer: --help" if name.endswith("--help") else "typer: a command"
        over = median - medians[peer_name]
        late += over > BUDGET
        print(f"{name:22}{median * 1e3:8.1f} ms {over * 1e3:+8.1f} ms")
    return 1 if late else 0


if __name__ == "__main__":
    raise SystemExit(main(*map(int, sys.argv[1:])))
