"""A report as data, everything that its JSON file, its Markdown and its figures show; and the Markdown itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

Value = str | int | float | bool | None


class Point(msgspec.Struct, frozen=True):
    x: float
    y: float
    label: str = ""


class Series(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    points: tuple[Point, ...]
    style: Literal["line", "dashed", "points"] = "line"


class Figure(msgspec.Struct, frozen=True, kw_only=True, tag="lines"):
    """Curves or points over a numeric axis."""

    name: str
    """Of its file, without the suffix."""
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    is_log: bool = False
    """Whether the x axis is logarithmic."""


class Bars(msgspec.Struct, frozen=True, kw_only=True, tag="bars"):
    """One bar a label."""

    name: str
    title: str
    y_label: str
    bars: dict[str, float]


class Table(msgspec.Struct, frozen=True, kw_only=True):
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    """Shares are from 0 to 1; None where something was not measured."""
    caption: str = ""


class Section(msgspec.Struct, frozen=True, kw_only=True):
    title: str
    text: tuple[str, ...]
    """Paragraphs."""
    figures: tuple[Figure | Bars, ...] = ()
    tables: tuple[Table, ...] = ()


class Aim(msgspec.Struct, frozen=True, kw_only=True):
    """A figure that was to be reached."""

    aim: str
    measured: float | None
    """None where it could not be measured."""
    bound: float
    is_lower_better: bool = False
    how: str = ""
    """At which setting."""

    @property
    def is_met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured <= self.bound if self.is_lower_better else self.measured >= self.bound


class CheckpointRow(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    fingerprint: str
    parameters: int
    megabytes: float
    depth: str
    """The default depth policy."""


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """What it was measured on."""

    python: str
    torch: str
    processor: str
    cores: int
    problems: str
    """The file of the problems, by name."""
    count: int
    limit: int | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    environment: Environment
    checkpoints: tuple[CheckpointRow, ...]
    missing: tuple[str, ...]
    """Checkpoints that were not there; what needs them is left out."""
    aims: tuple[Aim, ...]
    sections: tuple[Section, ...]
    cells: Table
    """Everything that was evaluated."""


_COSTS = frozenset(
    (
        "depth",
        "mean depth",
        "seconds",
        "seconds of the cell",
        "milliseconds",
        "tokens",
        "sequential tokens",
        "children",
        "threads",
        "token-iterations",
    )
)
"""Columns of floats that are costs; those of all others are shares, shown in per cent."""


def as_markdown(report: Report, figures: str) -> str:
    """`figures` is where the figures lie, as seen from the file."""
    here = report.environment
    lines = [
        "# Countdown: what the models do",
        "",
        "Written by `python -m benchmarks.countdown.report`; the numbers are in [countdown.json](countdown.json). "
        f"Evaluated on {here.count:,} problems of `{here.problems}`"
        + ("" if here.limit is None else f" (**a quick run with --limit {here.limit}: too few to compare anything**)")
        + f", {here.cores} cores ({here.processor}), Python {here.python}, PyTorch {here.torch}. Accuracies are in per "
        "cent; tokens, children, token-iterations and seconds are means a problem.",
        "",
    ]
    if report.missing:
        lines += [f"Not there, and left out: {', '.join(report.missing)}.", ""]
    lines += ["## Aims", "", *_aims(report.aims), "", "## Checkpoints", "", *_checkpoints(report), ""]
    for section in report.sections:
        lines += _section(section, figures)
    lines += ["## Everything that was evaluated", "", *_table(report.cells), ""]
    return "\n".join(lines)


def _aims(aims: Iterable[Aim]) -> list[str]:
    words = {True: "met", False: "**not met**", None: "not measured"}
    rows: list[tuple[Value, ...]] = [
        (
            aim.aim,
            "-" if aim.measured is None else f"{aim.measured:.2f}",
            f"{'at most' if aim.is_lower_better else 'at least'} {aim.bound:g}",
            words[aim.is_met],
            aim.how,
        )
        for aim in aims
    ]
    return _table(Table(columns=("aim", "measured", "bound", "", "where"), rows=tuple(rows)))


def _checkpoints(report: Report) -> list[str]:
    rows: list[tuple[Value, ...]] = [
        (row.name, row.parameters, f"{row.megabytes:.2f}", f"`{row.depth}`", f"`{row.fingerprint[:12]}`")
        for row in report.checkpoints
    ]
    return _table(Table(columns=("checkpoint", "parameters", "MiB", "depth policy", "fingerprint"), rows=tuple(rows)))


def _section(section: Section, figures: str) -> list[str]:
    lines = [f"## {section.title}", ""]
    for paragraph in section.text:
        lines += [paragraph, ""]
    for figure in section.figures:
        lines += [f"![{figure.title}]({figures}/{figure.name}.svg)", ""]
    for table in section.tables:
        lines += [*([table.caption + ":", ""] if table.caption else []), *_table(table), ""]
    return lines


def _table(table: Table) -> list[str]:
    if not table.rows:
        return ["(nothing was evaluated)"]
    is_text = [any(isinstance(row[column], str) for row in table.rows) for column in range(len(table.columns))]
    return [
        _line(table.columns),
        _line(["---" if text else "---:" for text in is_text]),
        *(_line([_shown(value, name) for value, name in zip(row, table.columns, strict=True)]) for row in table.rows),
    ]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _shown(value: Value, column: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if column not in _COSTS:
        return f"{100 * value:.1f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
