"""Fewer iteration slots of keys and values."""

from __future__ import annotations

from benchmarks.countdown.report.cells import Cell, parallel
from benchmarks.countdown.report.document import Figure, Point, Section, Series, Table
from benchmarks.countdown.report.oracle import Oracle
from benchmarks.countdown.report.results import Results
from benchmarks.countdown.report.shown import first_of
from policies import Fixed

SLOTS = (1, 2, 4, None)
COUNT = 300


def cell(slots: int | None) -> Cell:
    # With all slots it is the cell of full depth, which other sections need on all problems.
    return parallel(depth=Fixed(), slots=slots, count=1000 if slots is None else COUNT)


def cells() -> list[Cell]:
    return [cell(slots) for slots in SLOTS]


def section(results: Results, oracle: Oracle) -> Section:
    rows = []
    for slots in SLOTS:
        result = results.get(cell(slots))
        if result is not None:
            facts = results.checkpoints["parallel"]
            part = first_of(result, COUNT)
            held = facts.mean_recurrence if slots is None else slots
            rows.append(("all" if slots is None else str(slots), part.count, part.accuracy, facts.kv_bytes(held)))
    return Section(
        title="Slots of keys and values",
        text=(
            "With S slots, iteration r reads and writes slot (r - 1) mod S: memory shrinks with S. The model was "
            "trained with all. Every token at the mean recurrence; bytes are of float32 keys and values.",
        ),
        figures=(
            Figure(
                name="countdown-slots",
                title="Accuracy against memory",
                x_label="bytes of keys and values a token",
                y_label="accuracy",
                series=(
                    Series(
                        name="S = 1, 2, 4, all",
                        points=tuple(Point(size, accuracy, f"S = {slots}") for slots, _, accuracy, size in rows),
                    ),
                ),
            ),
        ),
        tables=(Table(columns=("slots", "N", "accuracy", "bytes a token"), rows=tuple(rows)),),
    )
