"""Figures as SVG files that read on light and on dark pages: no background, and colours between the two."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from benchmarks.countdown.report.document import Bars, Figure, Series

INK = "#8a8f98"
"""Axes and letters: about equally far from white and from black."""
COLOURS = ("#4c8df6", "#e8743b", "#2fa36b", "#b565d8", "#c9a227", "#d9506c", "#2ba6b8", "#9a7b4f")
MARKERS = "osD^vPX*"
SHAPE = (7.2, 4.2)
"""Inches."""


def draw(figure: Figure | Bars, directory: Path) -> Path:
    """Writes `figure.name`.svg into the directory; the same figure gives the same bytes. Returns its path."""
    path = directory / f"{figure.name}.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(
        {
            "svg.hashsalt": "countdown",
            "font.size": 10,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": INK,
            "axes.titlecolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "grid.color": INK,
            "grid.alpha": 0.25,
            "axes.grid": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "legend.fontsize": 8,
        }
    ):
        canvas = Canvas(figsize=SHAPE, layout="constrained")
        axes = canvas.add_subplot()
        axes.set_title(figure.title)
        axes.set_ylabel(figure.y_label)
        if isinstance(figure, Bars):
            _bars(axes, figure)
        else:
            _lines(axes, figure)
        canvas.savefig(path, transparent=True, metadata={"Date": None})
    return path


def _bars(axes: Axes, figure: Bars) -> None:
    drawn = axes.bar(list(figure.bars), list(figure.bars.values()), color=COLOURS[: len(figure.bars)], width=0.6)
    axes.bar_label(drawn, fmt="%.2f", color=INK)
    axes.grid(visible=False, axis="x")


def _lines(axes: Axes, figure: Figure) -> None:
    axes.set_xlabel(figure.x_label)
    drawn = [series for series in figure.series if series.points]
    for number, series in enumerate(drawn):
        _series(axes, series, number)
    if figure.is_log and drawn:
        axes.set_xscale("log", base=2)
        places = sorted({point.x for series in drawn for point in series.points})
        if all(after >= 1.15 * before for before, after in pairwise(places)) and len(places) <= 8:
            axes.set_xticks(places)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif drawn:
        axes.xaxis.set_major_locator(MaxNLocator(8))
    if len(drawn) > 6:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    elif len(drawn) > 1:
        axes.legend(loc="best")


def _series(axes: Axes, series: Series, number: int) -> None:
    points = sorted(series.points, key=lambda point: point.x)
    axes.plot(
        [point.x for point in points],
        [point.y for point in points],
        color=COLOURS[number % len(COLOURS)],
        linestyle={"line": "-", "dashed": "--", "points": ""}[series.style],
        # Past the last colour, colours come again with other markers.
        marker=MARKERS[(number + number // len(COLOURS)) % len(MARKERS)],
        markersize=4,
        linewidth=1.5,
        label=series.name,
    )
    for point in points:
        if point.label:
            axes.annotate(
                point.label, (point.x, point.y), xytext=(4, -9), textcoords="offset points", fontsize=7, color=INK
            )
