"""cambrian bench"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cambrian.cli import text
from cambrian.cli.completion import complete_model
from cambrian.config import parse_assignment
from cambrian.errors import CambrianError

if TYPE_CHECKING:
    from cambrian.benchmarking.figures import Benchmark, Row

VERSIONS = ("python", "cambrian", "torch", "numpy", "onnxruntime", "onnxruntime-gpu")


def bench(
    names: Annotated[
        list[str],
        typer.Argument(
            help="Checkpoints, named models and exported folders.",
            autocompletion=complete_model,
        ),
    ],
    sizes: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="How much work; repeatable."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Only rows whose name fits; repeatable."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", help="What exporting to int8 is judged by; repeatable."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each has its turn.")] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    picture: Annotated[
        Path | None,
        typer.Option("--picture", "-o", help="Draw the rates as bars (.svg, .png, .pdf)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Measure how fast a model is on this machine, by engine.

    A checkpoint or a named model runs on torch (as it is, compiled, in bfloat16) and as every
    export that can be made of it; an exported folder runs as it is. Each has a process of its
    own, in turn, and the same work: batch, prompt and new for text that is generated, batch and
    length for text that is read, batch for pictures. SAME says how many results equal those of
    the first row.

    \b
    Examples:
      cambrian bench runs/bard
      cambrian bench gpt2 --set new=64 --only 'torch*' --only 'onnx float32'
      cambrian bench runs/bard-onnx runs/bard-int8 --set batch=8 --rounds 5 -o bars.svg
    """
    from cambrian.benchmarking import bench as measure
    from cambrian.cli.progress import Downloads, say
    from cambrian.scores import require_picture

    if picture is not None:
        require_picture(picture)
    signal.signal(signal.SIGTERM, ended)
    with Downloads() as downloads:
        found = measure(
            names,
            only=only or (),
            sizes=dict(map(parse_assignment, sizes or ())),
            data=data or (),
            rounds=rounds,
            device=device,
            report=say,
            fetching=downloads.report,
        )
    facts = machine()
    if as_json:
        print(json.dumps({"machine": facts, "targets": names, **asdict(found)}))
    else:
        show(found, facts)
    if all(row.problem for row in found.rows):
        raise CambrianError("Nothing could be measured; the reasons are in the table.")
    if picture is not None:
        from cambrian.benchmarking.chart import draw

        draw(found, picture, f"{', '.join(names)}: {work(found)}\n{facts['cpu']}")
        say(f"wrote {picture}")


def ended(number: int, frame: Any) -> None:
    """Go the way of an exception, which leaves nothing behind."""
    sys.exit(128 + number)


def machine() -> dict[str, Any]:
    """What the figures depend on beside the model."""
    from cambrian.cli.env import environment

    facts = environment()
    known = {name: facts[name] for name in VERSIONS if facts[name] != "not installed"}
    return {name: facts[name] for name in ("cpu", "cores", "memory", "gpu")} | known


def work(found: Benchmark) -> str:
    """What was measured, in words."""
    sizes = ", ".join(f"{name} {size}" for name, size in found.sizes.items())
    return f"{sizes}; {found.rounds} round{'s' * (found.rounds > 1)}"


def show(found: Benchmark, facts: dict[str, Any]) -> None:
    """The machine, the work, and a row for each subject; nodes are those of the engine's graph."""
    versions = ", ".join(f"{name} {facts[name].split()[0]}" for name in VERSIONS if name in facts)
    print(f"{facts['cpu']}; {facts['cores']} cores; {facts['memory']}; GPU: {facts['gpu']}")
    print(versions)
    print(work(found), end="\n\n")
    first = "FIRST MS" if found.streams else "MS"
    rate = f"{found.unit or 'units'}/s".upper()
    header = ["SUBJECT", first, rate, "SPREAD", "RATIO", "SAME", "LOAD S", "MIB", "GPU MIB",
              "DISK MIB", "NODES", "ENGINE"]  # fmt: skip
    text.table(header, [[row.name, *cells(row)] for row in found.rows])
    for name, reason in found.left_out.items():
        print(f"left out: {name}: {text.printable(reason)}")


def cells(row: Row) -> Iterator[str]:
    """A row's figures, or its reason for having none."""
    if row.problem or row.first_ms is None or row.rate is None:
        yield from ["-"] * 10
        yield row.problem
        return
    yield short(row.first_ms.median)
    yield short(row.rate.median)
    low, high = short(row.rate.low), short(row.rate.high)
    yield f"{low}-{high}" if low != high else "-"
    yield f"{row.ratio:.2f}"
    yield f"{row.equal}/{row.compared}"
    yield f"{row.load_s:.1f}"
    yield "-" if row.memory_mib is None else f"{row.memory_mib:.0f}"
    yield "-" if row.gpu_mib is None else f"{row.gpu_mib:.0f}"
    yield f"{row.disk_mib:.3g}"
    yield str(sum(row.operators.values()) or "-")
    settings = ", ".join(f"{name} {value}" for name, value in row.settings.items())
    yield "; ".join(part for part in (row.provider, settings, row.note) if part)


def short(value: float) -> str:
    """Four digits, or all before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
