"""From results to points and rows, the same way in every section."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from benchmarks.countdown.report.cells import Cell, Result, sampled_serial, serial, standard_error
from benchmarks.countdown.report.curves import Spent, consensus_at, pass_at
from benchmarks.countdown.report.document import Point, Series, Value
from benchmarks.countdown.report.results import Results
from examples.countdown.vocabulary import NESTED

COST_COLUMNS = ("N", "accuracy", "s.e.", "tokens", "children", "token-iterations", "depth", "longest thread")


def cost_row(result: Result) -> tuple[Value, ...]:
    """The cells of `COST_COLUMNS`: means a problem, but for the longest thread."""
    return (
        result.count,
        result.accuracy,
        standard_error(result.accuracy, result.count),
        result.mean("sampled"),
        result.mean("threads") - 1,
        result.mean("iterations"),
        result.depth,
        max(record.longest for record in result.flat),
    )


def accuracy_or_none(results: Results, cell: Cell) -> float | None:
    result = results.get(cell)
    return None if result is None else result.accuracy


def counts(results: Results, cells: Iterable[Cell]) -> str:
    """On how many problems the cells were evaluated, in words."""
    numbers = sorted({result.count for result in results.of(cells)})
    return f"N = {' to '.join(f'{number:,}' for number in dict.fromkeys((*numbers[:1], *numbers[-1:])))}"


def points(values: Mapping[int, float | None]) -> tuple[Point, ...]:
    return tuple(Point(x, y) for x, y in values.items() if y is not None)


def spent(results: Results, cells: Iterable[Cell], cost: str, first: int | None = None) -> list[Spent]:
    """Each cell that is there by the mean of one field of its records, over its first problems if a number is given."""
    found = []
    for cell in cells:
        result = results.get(cell)
        if result is not None:
            part = first_of(result, first)
            found.append(Spent(part.mean(cost), part.accuracy, cell.setting))
    return found


def first_of(result: Result, count: int | None) -> Result:
    """The result on its first problems only."""
    return Result(cell=result.cell, records=result.records[:count], seconds=result.seconds, depths=result.depths)


def sampled_curves(
    results: Results, window: int, cost: str = "sampled", first: int | None = None
) -> tuple[list[Spent], list[Spent]]:
    """cons@n and pass@n of the serial model, n from 1 to the samples drawn; a problem costs n times the mean sample.

    Empty where the cell is not there.
    """
    result = results.get(sampled_serial(window))
    if result is None:
        return [], []
    part = first_of(result, first)
    price = part.mean(cost)
    consensus, passing = [], []
    for n in range(1, len(part.records[0]) + 1):
        right = sum(consensus_at(records, n) for records in part.records) / part.count
        any_right = sum(pass_at(records, n) for records in part.records) / part.count
        consensus.append(Spent(n * price, right, f"cons@{n} within {window}"))
        passing.append(Spent(n * price, any_right, f"pass@{n} within {window}"))
    return consensus, passing


def serial_side(results: Results, window: int, cost: str = "sampled", first: int | None = None) -> list[Spent]:
    """All that the serial model can do at a window: one greedy thread, or the consensus of n."""
    return [*spent(results, [serial(window)], cost, first), *sampled_curves(results, window, cost, first)[0]]


def as_points(curve: Iterable[Spent]) -> tuple[Point, ...]:
    return tuple(Point(point.cost, point.accuracy) for point in curve)


def by_children(curve: Iterable[Spent]) -> tuple[Series, ...]:
    """The parallel model's settings: a curve over budgets of children, and nested trees beside it."""
    budgets, nested = [], []
    for point in curve:
        if point.name == NESTED:
            nested.append(Point(point.cost, point.accuracy))
        else:
            budgets.append(Point(point.cost, point.accuracy, point.name.split()[0].replace("unlimited", "all")))
    return (
        Series(name="parallel, by children", points=tuple(budgets)),
        Series(name="parallel, nested", points=tuple(nested), style="points"),
    )
