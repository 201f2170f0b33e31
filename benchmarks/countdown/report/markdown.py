"""The report as Markdown; every number in it is one of the report's."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.countdown.report.document import Aim, Report, Section, Table, Value

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
