"""Accuracy against total tokens at one window."""

from __future__ import annotations

from benchmarks.countdown.report.cells import (
    ALL_CONDITIONS,
    SAMPLES,
    TEMPERATURE,
    Cell,
    parallel,
    sampled_serial,
    serial,
)
from benchmarks.countdown.report.document import Figure, Section, Series, Table, Value
from benchmarks.countdown.report.oracle import Oracle
from benchmarks.countdown.report.results import Results
from benchmarks.countdown.report.shown import as_points, by_children, counts, sampled_curves, spent

COMPARED = (128, 256)
"""Windows at which many short answers are compared with trees."""


def cells() -> list[Cell]:
    return [
        cell
        for window in COMPARED
        for cell in (
            *(parallel(condition) for condition in ALL_CONDITIONS),
            *parallel_cells(window),
            serial(window),
            sampled_serial(window),
        )
    ]


def parallel_cells(window: int) -> list[Cell]:
    return [parallel(condition, context=window) for condition in ALL_CONDITIONS]


def section(results: Results, oracle: Oracle) -> Section:
    figures, tables = [], []
    for window in COMPARED:
        trees = spent(results, parallel_cells(window), "sampled")
        greedy = spent(results, [serial(window)], "sampled")
        consensus, passing = sampled_curves(results, window)
        figures.append(
            Figure(
                name=f"countdown-tokens-{window}",
                title=f"Accuracy against total tokens, window {window}",
                x_label="sampled tokens a problem",
                y_label="accuracy",
                series=(
                    *by_children(trees),
                    Series(name="serial, cons@n", points=as_points(consensus)),
                    Series(name="serial, pass@n", points=as_points(passing), style="dashed"),
                    Series(name="serial, greedy", points=as_points(greedy), style="points"),
                ),
            )
        )
        rows: list[tuple[Value, ...]] = [
            (f"parallel, {point.name}" if point in trees else f"serial, {point.name}", point.cost, point.accuracy)
            for point in (*trees, *greedy, *consensus, *passing)
        ]
        tables.append(
            Table(
                columns=("setting", "tokens", "accuracy"),
                rows=tuple(rows),
                caption=f"Window {window}, {counts(results, cells())}",
            )
        )
    return Section(
        title="Accuracy against total tokens at one window",
        text=(
            "The parallel model is greedy and spends more by more children; it is told its budget, and spawns beyond "
            f"it are refused. The serial one answers {SAMPLES} times at "
            f"temperature {TEMPERATURE}; cons@n takes the most frequent answer of n (those without an answer do not "
            "vote, ties by lot), pass@n is right if any of them is; both are averages over all choices of n of the "
            f"{SAMPLES}. Tokens are sampled ones over all threads and samples.",
        ),
        figures=tuple(figures),
        tables=tuple(tables),
    )
