"""What a benchmark found, for people and for programs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator

import msgspec
from rich.table import Table

from benchmarks.machine import Environment
from traces import DeviceCosts


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Median, least and greatest of the same figure in several rounds."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        found = list(values)
        return cls(median=statistics.median(found), least=min(found), greatest=max(found))

    def __str__(self) -> str:
        return f"{_short(self.median)}\n({_short(self.least)}-{_short(self.greatest)})"


Cell = Spread | str | int | float


class Aim(msgspec.Struct, frozen=True, kw_only=True):
    """A figure that the engine is meant to reach."""

    figure: str
    measured: float
    bound: float
    is_lower_better: bool = False

    @property
    def is_met(self) -> bool:
        return self.measured <= self.bound if self.is_lower_better else self.measured >= self.bound

    def __str__(self) -> str:
        word = "at most" if self.is_lower_better else "at least"
        met = "met" if self.is_met else "NOT MET"
        return f"{self.figure}: {_short(self.measured)}, aim {word} {_short(self.bound)}: {met}"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One table: a row a case, named by its first cell. Units are in the names of the columns."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    aims: tuple[Aim, ...] = ()
    notes: tuple[str, ...] = ()
    device: DeviceCosts | None = None
    """What `python -m traces simulate --device` reads from the report."""

    def figures(self) -> Iterator[float]:
        """Every number of the table."""
        for cell in (cell for row in self.rows for cell in row):
            if isinstance(cell, Spread):
                yield from (cell.median, cell.least, cell.greatest)
            elif not isinstance(cell, str):
                yield cell


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All results of one run."""

    environment: Environment
    rounds: int
    results: tuple[Result, ...]


def as_table(result: Result) -> Table:
    """The result as it is printed: a figure a line, a case a column, its aims and notes below."""
    below = [*map(str, result.aims), *result.notes]
    table = Table(
        title=f"{result.name}: {result.title}",
        title_justify="left",
        caption="\n".join(below) or None,
        caption_justify="left",
    )
    table.add_column(result.columns[0])
    for row in result.rows:
        table.add_column(_shown(row[0]), justify="right")
    for number, figure in enumerate(result.columns[1:], start=1):
        table.add_row(figure, *(_shown(row[number]) for row in result.rows))
    return table


def as_markdown(report: Report) -> str:
    """All tables as a document's section, a row a case, headed by the machine and by the rounds."""
    lines = [f"Measured on {report.environment}; rounds: {report.rounds}.", ""]
    for result in report.results:
        lines += [
            f"**{result.name}**: {result.title}.",
            "",
            _line(result.columns),
            _line(["---"] * len(result.columns)),
        ]
        lines += [_line(_shown(cell).replace("\n", " ") for cell in row) for row in result.rows]
        lines += ["", *(f"- {said}" for said in (*map(str, result.aims), *result.notes)), ""]
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(cell: Cell) -> str:
    return _short(cell) if isinstance(cell, float) else str(cell)


def _short(number: float) -> str:
    """Three significant digits, and no exponent."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{float(f'{number:.3g}'):g}"
