"""Where problems are lost: errors by kind."""

from __future__ import annotations

from collections import Counter

from benchmarks.countdown.report.cells import MAIN_CONDITIONS, WINDOWS, Cell, Record, parallel, serial
from benchmarks.countdown.report.document import Section, Table, Value
from benchmarks.countdown.report.oracle import Oracle
from benchmarks.countdown.report.results import Results
from examples.countdown.vocabulary import NESTED
from policies import Fixed

UNSOLVABLE = "no solution under the cap of 199"
CUT = "the root ran out of its window"
FORGOTTEN = "a right path came back, the root answered none"
CONFUSED = "a right path came back, the root answered another"
NOT_FOUND = "a child was asked what has a solution and did not return it"
NOT_ASKED = "no child was asked what has a solution"
GAVE_UP = "ended without an answer"
WRONG = "answered wrong"
KINDS = (UNSOLVABLE, CUT, FORGOTTEN, CONFUSED, NOT_FOUND, NOT_ASKED, GAVE_UP, WRONG)
"""Each error is the first that fits; the last two are of threads without children."""


def cells() -> list[Cell]:
    return [
        parallel(depth=Fixed()),
        *(parallel(condition) for condition in (*MAIN_CONDITIONS, NESTED)),
        *(serial(window) for window in WINDOWS),
    ]


def mistake(record: Record, is_solvable: bool, is_serial: bool) -> str:
    """The kind of a wrong record's error."""
    if not is_solvable:
        return UNSOLVABLE
    if record.reason == "context":
        return CUT
    if is_serial:
        return GAVE_UP if record.answer is None else WRONG
    if record.is_found:
        return FORGOTTEN if record.answer is None else CONFUSED
    return NOT_FOUND if record.is_asked else NOT_ASKED


def section(results: Results, oracle: Oracle) -> Section:
    rows: list[tuple[Value, ...]] = []
    for cell in cells():
        result = results.get(cell)
        if result is None:
            continue
        counts = Counter(
            mistake(record, is_solvable, cell.is_serial)
            for records, is_solvable in zip(result.records, oracle.solvable, strict=False)
            for record in records
            if not record.is_right
        )
        name = f"{'serial' if cell.is_serial else 'parallel'}, {cell.setting}"
        name = f"{name}, full depth" if cell.depth is not None else name
        false = sum(record.answer is not None and not record.is_right for record in result.flat)
        rows.append((name, result.count, sum(counts.values()), *(counts[kind] for kind in KINDS), false))
    return Section(
        title="Errors by kind",
        text=(
            "Numbers of problems that were not solved, by the first kind that fits; and all that got a wrong answer "
            "instead of none. A nested tree is counted by its innermost children.",
        ),
        tables=(Table(columns=("setting", "N", "wrong", *KINDS, "any wrong answer"), rows=tuple(rows)),),
    )
