"""The joint frontier: children, iterations, windows and samples at equal compute."""

from __future__ import annotations

from benchmarks.countdown.report.cells import UNLIMITED, Cell, children, parallel, serial
from benchmarks.countdown.report.curves import Spent, best_within, pareto
from benchmarks.countdown.report.document import Figure, Section, Series, Table
from benchmarks.countdown.report.oracle import Oracle
from benchmarks.countdown.report.results import Results
from benchmarks.countdown.report.sections.tokens import COMPARED
from benchmarks.countdown.report.shown import as_points, first_of, sampled_curves
from examples.countdown.vocabulary import NESTED
from policies import Fixed

CONDITIONS = (*(children(budget) for budget in (1, 2, 4, 6, 10)), UNLIMITED, NESTED)
WINDOWS = (128, 256, 512, 1024)
FEWER_ITERATIONS = (2, 3, 4)
COUNT = 400
"""Every point is on the same problems."""
BUDGETS = (500, 1000, 1500, 2000, 3000, 4000, 6000, 8000)
"""Token-iterations a problem."""


def cells() -> list[Cell]:
    return [cell for series in mixtures().values() for cell in series]


def mixtures() -> dict[str, list[Cell]]:
    """Curves of the figure: children or windows vary along each, iterations from one to the next."""
    curves = {
        f"parallel, r = {r}": [parallel(condition, depth=Fixed(r), count=COUNT) for condition in CONDITIONS]
        for r in FEWER_ITERATIONS
    }
    curves["parallel, full depth"] = [parallel(condition, depth=Fixed()) for condition in CONDITIONS]
    curves["parallel, own depth"] = [parallel(condition) for condition in CONDITIONS]
    curves |= {
        f"serial, r = {r}": [serial(window, depth=Fixed(r), count=COUNT) for window in WINDOWS]
        for r in FEWER_ITERATIONS
    }
    curves["serial, full depth"] = [serial(window, depth=Fixed()) for window in WINDOWS]
    curves["serial, own depth"] = [serial(window) for window in WINDOWS]
    return curves


def curves(results: Results) -> dict[str, list[Spent]]:
    """Accuracy by token-iterations on the same first problems, by name of the mixture."""
    found = {
        name: [
            Spent(part.mean("iterations"), part.accuracy, f"{name}, {part.cell.setting}")
            for part in (first_of(result, COUNT) for result in results.of(cells))
        ]
        for name, cells in mixtures().items()
    }
    for window in COMPARED:
        consensus, _ = sampled_curves(results, window, "iterations", COUNT)
        found[f"serial, cons@n within {window}"] = [
            Spent(point.cost, point.accuracy, f"serial, {point.name}") for point in consensus
        ]
    return {name: curve for name, curve in found.items() if curve}


def section(results: Results, oracle: Oracle) -> Section:
    found = curves(results)
    everything = [point for curve in found.values() for point in curve]
    front = pareto(everything)
    rows = []
    for budget in BUDGETS:
        winner = best_within(everything, budget)
        serial_best = best_within([point for point in everything if point.name.startswith("serial")], budget)
        if winner is not None:
            rows.append(
                (
                    budget,
                    winner.name,
                    winner.accuracy,
                    winner.cost,
                    None if serial_best is None else serial_best.accuracy,
                )
            )
    return Section(
        title="Children, iterations and tokens at equal compute",
        text=(
            "Compute is token-iterations a problem: computed tokens, prompts and messages included, by the core "
            f"iterations that each got. All points are on the first {COUNT} problems. The Pareto curve joins what "
            "nothing cheaper equals.",
        ),
        figures=(
            Figure(
                name="countdown-frontier",
                title="Accuracy against compute",
                x_label="token-iterations a problem",
                y_label="accuracy",
                series=(
                    *(Series(name=name, points=as_points(curve), style="points") for name, curve in found.items()),
                    Series(name="Pareto curve", points=as_points(front)),
                ),
                is_log=True,
            ),
        ),
        tables=(
            Table(
                columns=("budget", "best mixture", "accuracy", "token-iterations", "best serial accuracy"),
                rows=tuple(rows),
                caption="What wins within each budget of token-iterations a problem",
            ),
            Table(
                columns=("Pareto curve", "token-iterations", "accuracy"),
                rows=tuple((point.name, point.cost, point.accuracy) for point in front),
            ),
        ),
    )
