"""Supervised training against supervised training and RL."""

from __future__ import annotations

from benchmarks.countdown.report.cells import MAIN_CONDITIONS, WINDOWS, Cell, ModelName, parallel, serial
from benchmarks.countdown.report.document import Figure, Section, Series, Table, Value
from benchmarks.countdown.report.oracle import Oracle
from benchmarks.countdown.report.results import Results
from benchmarks.countdown.report.shown import COST_COLUMNS, as_points, cost_row, spent
from policies import Fixed


def parallel_cells(model: ModelName) -> list[Cell]:
    return [parallel(condition, model, depth=Fixed()) for condition in MAIN_CONDITIONS]


def serial_cells(model: ModelName) -> list[Cell]:
    return [serial(window, model, depth=Fixed()) for window in WINDOWS]


def sides() -> dict[str, list[Cell]]:
    return {
        "parallel, supervised": parallel_cells("parallel-supervised"),
        "parallel, supervised + RL": parallel_cells("parallel"),
        "serial, supervised": serial_cells("serial-supervised"),
        "serial, supervised + RL": serial_cells("serial"),
    }


def own_depth_cells() -> list[Cell]:
    """The shipped models at their own default depth."""
    return [*(parallel(condition) for condition in MAIN_CONDITIONS), *(serial(window) for window in WINDOWS)]


def cells() -> list[Cell]:
    return [
        *parallel_cells("parallel-supervised"),
        *parallel_cells("parallel"),
        *serial_cells("serial-supervised"),
        *serial_cells("serial"),
        *own_depth_cells(),
    ]


def section(results: Results, oracle: Oracle) -> Section:
    rows: list[tuple[Value, ...]] = []
    pairs = zip(
        [*parallel_cells("parallel-supervised"), *serial_cells("serial-supervised")],
        [*parallel_cells("parallel"), *serial_cells("serial")],
        own_depth_cells(),
        strict=True,
    )
    for before, after, own in pairs:
        kinds = (("supervised", before), ("supervised + RL", after), ("supervised + RL, own depth", own))
        for kind, cell in kinds:
            result = results.get(cell)
            if result is not None:
                side = "serial" if cell.is_serial else "parallel"
                rows.append((f"{side}, {cell.setting}", kind, *cost_row(result)))
    return Section(
        title="Supervised against supervised + RL",
        text=(
            "The same settings before and after RL, every token at the model's mean recurrence; and after RL at the "
            "depth policy that the checkpoint carries. Means a problem.",
        ),
        figures=(
            Figure(
                name="countdown-learning",
                title="Accuracy against compute, before and after RL",
                x_label="token-iterations a problem",
                y_label="accuracy",
                series=tuple(
                    Series(
                        name=name,
                        points=as_points(spent(results, cells, "iterations")),
                        style="line" if name.endswith("RL") else "dashed",
                    )
                    for name, cells in sides().items()
                ),
                is_log=True,
            ),
        ),
        tables=(Table(columns=("setting", "training", *COST_COLUMNS), rows=tuple(rows)),),
    )
