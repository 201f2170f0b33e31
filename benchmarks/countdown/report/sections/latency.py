"""Accuracy against latency and against sequential tokens."""

from __future__ import annotations

import msgspec

from benchmarks.countdown.report.cells import MAIN_CONDITIONS, WINDOWS, Cell, children, parallel, serial
from benchmarks.countdown.report.curves import Spent
from benchmarks.countdown.report.document import Figure, Section, Series, Table, Value
from benchmarks.countdown.report.oracle import Oracle
from benchmarks.countdown.report.results import Results
from benchmarks.countdown.report.shown import as_points, by_children, counts

CONDITIONS = (children(1), *MAIN_CONDITIONS)
TIMED = 100
TRACED = 50


def cells() -> list[Cell]:
    return [*accurate_cells(), *timed_cells(), *traced_cells()]


def accurate_cells() -> list[Cell]:
    return [*(parallel(condition) for condition in CONDITIONS), *(serial(window) for window in WINDOWS)]


def timed_cells() -> list[Cell]:
    return [msgspec.structs.replace(cell, at_once=1, count=TIMED) for cell in accurate_cells()]


def traced_cells() -> list[Cell]:
    return [msgspec.structs.replace(cell, is_traced=True, count=TRACED) for cell in accurate_cells()]


def latencies(results: Results) -> tuple[list[Spent], list[Spent]]:
    """Accuracy by seconds a problem, of the parallel and of the serial model."""
    return _sides(results, timed_cells(), "seconds")


def _sides(results: Results, costly: list[Cell], field: str) -> tuple[list[Spent], list[Spent]]:
    """Accuracy on all problems by the cost on those fewer for which it was measured, of either model."""
    sides: tuple[list[Spent], list[Spent]] = ([], [])
    for full, part in zip(accurate_cells(), costly, strict=True):
        accurate, measured = results.get(full), results.get(part)
        if accurate is not None and measured is not None:
            sides[full.is_serial].append(Spent(measured.mean(field), accurate.accuracy, full.setting))
    return sides


def section(results: Results, oracle: Oracle) -> Section:
    chains, serial_chains = _sides(results, traced_cells(), "sequential")
    timed, serial_timed = latencies(results)
    sequential = {point.name: point.cost for point in (*chains, *serial_chains)}
    rows: list[tuple[Value, ...]] = [
        (f"{side}, {point.name}", point.cost * 1000, sequential.get(point.name), point.accuracy)
        for side, curve in (("parallel", timed), ("serial", serial_timed))
        for point in curve
    ]
    return Section(
        title="Accuracy against latency and sequential tokens",
        text=(
            f"Latency is the mean wall time of the first {TIMED} problems, one after the other on an otherwise idle "
            "engine; accuracy is that of the whole set at the same setting. Sequential tokens are those sampled in the "
            f"longest causally dependent chain of a tree, from traces of the first {TRACED} problems: a child follows "
            "the token that closed its spawn, a parent after its join follows the last of its children.",
        ),
        figures=(
            Figure(
                name="countdown-latency",
                title="Accuracy against latency",
                x_label="seconds a problem, one at a time",
                y_label="accuracy",
                series=(
                    *by_children(timed),
                    Series(name="serial, by window", points=as_points(serial_timed)),
                ),
            ),
            Figure(
                name="countdown-sequential",
                title="Accuracy against sequential tokens",
                x_label="tokens in the longest dependent chain",
                y_label="accuracy",
                series=(
                    *by_children(chains),
                    Series(name="serial, by window", points=as_points(serial_chains)),
                ),
            ),
        ),
        tables=(
            Table(
                columns=("setting", "milliseconds", "sequential tokens", "accuracy"),
                rows=tuple(rows),
                caption=f"Accuracy on {counts(results, accurate_cells())}; milliseconds on "
                f"{counts(results, timed_cells())}; sequential tokens on {counts(results, traced_cells())}",
            ),
        ),
    )
