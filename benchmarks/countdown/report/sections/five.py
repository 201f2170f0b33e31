"""Five numbers: trees of three levels against one long thread."""

from __future__ import annotations

from benchmarks.countdown.report.cells import Cell, parallel, serial
from benchmarks.countdown.report.document import Section, Table
from benchmarks.countdown.report.oracle import Oracle
from benchmarks.countdown.report.results import Results
from benchmarks.countdown.report.shown import COST_COLUMNS, cost_row

COUNT = 40
WINDOW = 4096


def parallel_cell() -> Cell:
    return parallel(context=WINDOW, problems="five", count=COUNT, at_once=1)


def serial_cell() -> Cell:
    return serial(WINDOW, problems="five", count=COUNT, at_once=1)


def cells() -> list[Cell]:
    return [parallel_cell(), serial_cell()]


def section(results: Results, oracle: Oracle) -> Section:
    found = results.of(cells())
    return Section(
        title="Five numbers",
        text=(
            "Drawn as the four are, one after the other on an otherwise idle engine. The root spawns a child per first "
            "operation, each child a grandchild per second one. Few such trees were seen in training.",
        ),
        tables=(
            Table(
                columns=("setting", *COST_COLUMNS, "threads", "seconds"),
                rows=tuple(
                    (
                        "serial, within 4096" if result.cell.is_serial else "parallel",
                        *cost_row(result),
                        result.mean("threads"),
                        result.mean("seconds"),
                    )
                    for result in found
                ),
            ),
        ),
    )
