"""A benchmark as a chart: a bar for each subject, and over it the range of its rounds."""

from __future__ import annotations

from pathlib import Path

from cambrian.benchmarking.figures import Benchmark
from cambrian.errors import CambrianError
from cambrian.files import write_with
from cambrian.scores import require_picture


def draw(found: Benchmark, file: Path, title: str) -> None:
    """Draw the rates. UsageError for an unknown kind of file, CambrianError if nothing ran."""
    require_picture(file)
    rows = [(each.name, each.rate) for each in found.rows if each.rate is not None]
    if not rows:
        raise CambrianError("Nothing ran, so there is nothing to draw.")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.45 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    medians = [rate.median for _, rate in rows]
    below = [rate.median - rate.low for _, rate in rows]
    above = [rate.high - rate.median for _, rate in rows]
    places = range(len(rows))
    bars = axes.barh(places, medians, xerr=[below, above], color="tab:blue", ecolor="black")
    axes.bar_label(bars, [f"{median:,.4g}" for median in medians], padding=6)
    axes.set_yticks(places, [name.replace("$", r"\$") for name, _ in rows])  # no formulas
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(f"{found.unit} a second: median and range of {found.rounds} rounds")
    axes.set_title(title.replace("$", r"\$"), fontsize=9)
    write_with(file, lambda path: figure.savefig(path, format=file.suffix[1:]))
