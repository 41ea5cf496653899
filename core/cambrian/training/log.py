"""A run's figures: metrics.jsonl, TensorBoard if asked for, and the curve as a picture."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from cambrian.errors import CambrianError
from cambrian.files import disk_failure, write_bytes, write_with

METRICS = "metrics.jsonl"
CURVE = "loss.svg"


class MetricsLog:
    """Lines of JSON, one a record, in step order."""

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        """Open the log of a run that stands at `step`; records of later steps are dropped."""
        self.file = folder / METRICS
        kept = [r for r in read_metrics(folder) if r["step"] <= step]
        try:
            write_bytes(self.file, "".join(_line(r) for r in kept).encode())
            self.stream = self.file.open("a", encoding="utf-8")
        except OSError as error:
            raise disk_failure(error, str(self.file)) from error
        self.board = open_tensorboard(folder, step) if tensorboard else None

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record with its "step"."""
        try:
            self.stream.write(_line(record))
            self.stream.flush()
        except OSError as error:
            raise disk_failure(error, str(self.file)) from error
        if self.board is not None:
            for name, value in record.items():
                if name != "step" and isinstance(value, int | float):
                    self.board.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Close the files."""
        self.stream.close()
        if self.board is not None:
            self.board.close()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's log; a last line cut short by a kill is left out."""
    file = folder / METRICS
    if not file.is_file():
        return []
    records: list[dict[str, Any]] = []
    for line in file.read_text("utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break
        if isinstance(record, dict) and "step" in record:
            records.append(cast(dict[str, Any], record))
    return records


def require_tensorboard() -> None:
    """CambrianError if the extra is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise CambrianError(
            "TensorBoard is not installed; run pip install 'cambrian[tensorboard]', "
            "or train with tensorboard=false."
        )


def open_tensorboard(folder: Path, step: int) -> Any:
    """Open a TensorBoard writer."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)


def draw_curve(folder: Path) -> Path | None:
    """Draw the losses over the steps as an SVG beside the log; None if there are none."""
    records = read_metrics(folder)
    keys = dict.fromkeys(key for record in records for key in record)
    several = {key: key.removesuffix("_loss") for key in keys if key.endswith("_loss")}
    named = {"loss": "training", **several}
    series = {
        name: [(r["step"], r[key]) for r in records if key in r]
        for key, name in named.items()
        if key in keys
    }
    if not series:
        return None
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, points in series.items():
        if points:
            steps, losses = zip(*points, strict=True)
            marker = "o" if name == "validation" else None
            axes.plot(steps, losses, label=name, linewidth=1.2, marker=marker, markersize=3)
    axes.set(xlabel="step", ylabel="loss (nats)")
    axes.grid(alpha=0.3)
    axes.legend()
    FigureCanvasSVG(figure)
    target = folder / CURVE
    write_with(target, lambda file: figure.savefig(file, format="svg"))
    return target
