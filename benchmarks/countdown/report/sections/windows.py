"""Accuracy against the context window."""

from __future__ import annotations

from benchmarks.countdown.report.cells import MAIN_CONDITIONS, WINDOWS, Cell, parallel, serial
from benchmarks.countdown.report.document import Figure, Point, Section, Series, Table
from benchmarks.countdown.report.oracle import ORDERS, Oracle
from benchmarks.countdown.report.results import Results
from benchmarks.countdown.report.shown import accuracy_or_none, points
from examples.countdown.vocabulary import NESTED

CONDITIONS = (*MAIN_CONDITIONS, NESTED)


def cells() -> list[Cell]:
    windowed = [parallel(condition, context=window) for condition in CONDITIONS for window in WINDOWS]
    return [*windowed, *(serial(window) for window in WINDOWS)]


def section(results: Results, oracle: Oracle) -> Section:
    curves: dict[str, dict[int, float | None]] = {
        parallel(condition).setting: {
            window: accuracy_or_none(results, parallel(condition, context=window)) for window in WINDOWS
        }
        for condition in CONDITIONS
    }
    curves["serial"] = {window: accuracy_or_none(results, serial(window)) for window in WINDOWS}
    series = [Series(name=name, points=points(curve)) for name, curve in curves.items()]
    dashed = [
        Series(name="serial oracle", points=points(dict(oracle.serial)), style="dashed"),
        Series(name="cap", points=tuple(Point(window, oracle.ceiling) for window in WINDOWS), style="dashed"),
    ]
    return Section(
        title="Accuracy against context window",
        text=(
            "No thread may have more tokens than the window, its prompt included; one that reaches it ends without an "
            "answer. The serial model is told its window. The serial oracle is the solver's own trace, which has as "
            "many of the most promising first operations as fit into the window, a mean over "
            f"{ORDERS} rankings with the noise of the demonstrations. The cap is the share "
            "of problems that have a solution without a result above 199.",
        ),
        figures=(
            Figure(
                name="countdown-windows",
                title="Accuracy against window",
                x_label="window, tokens a thread",
                y_label="accuracy",
                series=(*series, *dashed),
                is_log=True,
            ),
        ),
        tables=(
            Table(
                columns=("window", *curves, "serial oracle"),
                rows=tuple(
                    (window, *(curve[window] for curve in curves.values()), oracle.serial[window]) for window in WINDOWS
                ),
            ),
        ),
    )
