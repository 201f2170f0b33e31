"""A picture of a run's metrics: `python -m policies.training.plot DIRECTORY`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from policies.training.metrics import FILE, read_metrics
from runtime.console import input_directory, logger, status_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = "metrics.svg"

_log = logger("policies.training")

_GREY = "#7f7f7f"
_COLOURS = ("#3b82c4", "#d9772b", "#3f9e5a", "#b04fc0", "#c94f4f", "#8a8420")
"""All of middle lightness, on no background: readable on light and on dark pages."""

Curve = tuple[list[float], list[float]]
"""Steps, and values at these steps."""


def plot_metrics(directory: Path) -> Path:
    """Draws the curves of metrics.jsonl over steps into metrics.svg beside it, and returns the picture's path.

    Curves that stay between 0 and 1 share a panel; the loss, and each other curve, has its own. Raises `ValueError`
    if there are no metrics, and `ImportError`, saying what to install, without matplotlib.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need matplotlib: python -m pip install matplotlib") from error
    panels = _panels(_curves(directory))
    with matplotlib.rc_context({"text.color": _GREY, "svg.hashsalt": FILE}):
        figure = Figure(figsize=(8, 2.4 * len(panels)), layout="constrained")
        for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
            _draw(axes, panel)
        axes.set_xlabel("step", color=_GREY)
        path = directory / PICTURE
        figure.savefig(path, transparent=True, metadata={"Date": None})
    return path


def plot_where_possible(directory: Path) -> None:
    """`plot_metrics` at the end of a run: without matplotlib a warning, since the run itself is done."""
    try:
        plot_metrics(directory)
    except ImportError as error:
        _log.warning("no plot", reason=str(error))


def _curves(directory: Path) -> dict[str, Curve]:
    lines = read_metrics(directory)
    if not lines:
        raise ValueError(f"{directory / FILE}: no metrics to plot; a run writes them every few steps.")
    curves: dict[str, Curve] = {}
    for metrics in lines:
        for name in metrics.keys() - {"step", "seconds"}:
            steps, values = curves.setdefault(name, ([], []))
            steps.append(metrics["step"])
            values.append(metrics[name])
    return dict(sorted(curves.items(), key=lambda curve: curve[0] != "loss"))


def _panels(curves: dict[str, Curve]) -> list[dict[str, Curve]]:
    shares = {
        name: curve for name, curve in curves.items() if name != "loss" and all(0 <= value <= 1 for value in curve[1])
    }
    alone = [{name: curve} for name, curve in curves.items() if name not in shares]
    return [*alone[:1], shares, *alone[1:]] if shares else alone


def _draw(axes: Axes, panel: dict[str, Curve]) -> None:
    for index, (name, (steps, values)) in enumerate(sorted(panel.items())):
        colour = _COLOURS[index % len(_COLOURS)]
        axes.plot(steps, values, color=colour, label=name.replace("_", " "), marker="." if len(steps) < 30 else "")
    if panel.keys() == {"loss"}:
        axes.set_yscale("log")
    axes.legend(frameon=False, labelcolor=_GREY)
    axes.tick_params(which="both", colors=_GREY)
    axes.grid(color=_GREY, alpha=0.25)
    for side in axes.spines.values():
        side.set_color(_GREY)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m policies.training.plot", description=__doc__)
    parser.add_argument("directory", type=input_directory, help="directory of a training run")
    print(plot_metrics(parser.parse_args().directory))
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
