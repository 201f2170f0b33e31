"""The same questions under a row of policies: what each costs and gives, and which no other beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.table import Table

from runtime import BraidError
from traces.counterfactual.asking import WhatIf


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """What one policy of a sweep gave."""

    value: float
    quality: float
    """The share of right answers; without a verifier, of answers that are as they were recorded."""
    is_verified: bool
    iterations: float
    """A question, as the other figures."""
    tokens: float
    critical_path: float


def point_of(value: float, result: WhatIf) -> Point:
    count = max(1, len(result.comparisons))
    costs = [each.now for each in result.comparisons]
    is_verified = any(cost.is_right is not None for cost in costs)
    good = sum(bool(each.now.is_right) if is_verified else not each.is_changed for each in result.comparisons)
    return Point(
        value=value,
        quality=good / count,
        is_verified=is_verified,
        iterations=sum(cost.iterations for cost in costs) / count,
        tokens=sum(cost.tokens for cost in costs) / count,
        critical_path=sum(cost.critical_path for cost in costs) / count,
    )


def is_best(point: Point, points: Sequence[Point]) -> bool:
    """Whether no other is at least as good for fewer iterations, or better for as many (Pareto)."""
    return not any(
        other.quality >= point.quality
        and other.iterations <= point.iterations
        and (other.quality, other.iterations) != (point.quality, point.iterations)
        for other in points
    )


def sweep_table(name: str, points: Sequence[Point]) -> Table:
    good = "right" if any(point.is_verified for point in points) else "as recorded"
    table = Table(name, good, "iterations", "tokens", "critical path", "best", title="a question, by " + name)
    for point in points:
        figures = (point.iterations, point.tokens, point.critical_path)
        table.add_row(
            f"{point.value:.4g}",
            f"{point.quality:.3f}",
            *(f"{figure:.4g}" for figure in figures),
            "*" if is_best(point, points) else "",
        )
    return table


def draw(name: str, points: Sequence[Point], path: Path) -> None:
    """A plot of quality over iterations, as SVG or whatever else the file's name ends in.

    Raises `BraidError` where matplotlib is not installed or knows no such format.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BraidError("A figure needs matplotlib: pip install matplotlib.") from error
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    best = sorted((point.iterations, point.quality) for point in points if is_best(point, points))
    axes.plot([iterations for iterations, _ in best], [quality for _, quality in best], color="tab:blue")
    axes.scatter([point.iterations for point in points], [point.quality for point in points], color="tab:blue")
    for point in points:
        axes.annotate(
            f"{point.value:.3g}", (point.iterations, point.quality), textcoords="offset points", xytext=(4, 4)
        )
    axes.set_xlabel("iterations a question")
    axes.set_ylabel("right" if any(point.is_verified for point in points) else "as recorded")
    axes.set_title(f"by {name}")
    axes.grid(alpha=0.3)
    try:
        figure.savefig(path)
    except ValueError as error:
        raise BraidError(f"Cannot draw {path}: {error}.") from error
