"""The comparison as it is printed: a row a side, the sides of a case together."""

from __future__ import annotations

from itertools import groupby

from rich.table import Table

from benchmarks.result import Cell, Result

_CASE = 3
"""Columns that name a case: dtype, threads, batch."""


def as_rows(result: Result) -> Table:
    """A table of the result, its aims and notes below."""
    below = [*map(str, result.aims), *result.notes]
    table = Table(
        title=f"{result.name}: {result.title}",
        title_justify="left",
        caption="\n".join(below) or None,
        caption_justify="left",
    )
    table.add_column("case")
    for column in result.columns[_CASE:]:
        table.add_column(column, justify="left" if column == "side" else "right")
    for case, rows in groupby(result.rows, key=lambda row: row[:_CASE]):
        dtype, threads, batch = case
        heading = f"{dtype}\nthreads: {threads}\nbatch {batch}"
        for number, row in enumerate(rows):
            table.add_row(heading if number == 0 else "", *map(_shown, row[_CASE:]))
        table.add_section()
    return table


def _shown(cell: Cell) -> str:
    if isinstance(cell, str):
        # Names may be broken at their hyphens, which rich does not do by itself.
        return cell.replace("-", "-\n")
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
