"""Accuracy against iterations, fixed and adaptive, and depth by kind of token."""

from __future__ import annotations

from benchmarks.countdown.report.cells import Cell, Result, parallel
from benchmarks.countdown.report.document import Bars, Figure, Point, Section, Series, Table, Value
from benchmarks.countdown.report.kinds import KINDS
from benchmarks.countdown.report.oracle import Oracle
from benchmarks.countdown.report.results import Results
from benchmarks.countdown.report.shown import first_of
from policies import KL, ArgmaxStability, ByRole, Cosine, DepthPolicy, EntropyDiff, Fixed, LatentDiff, MinPKL

ITERATIONS = (1, 2, 3, 4, 6, 8, 12)
COUNTS = {1: 100, 2: 500, 3: 500, 8: 300, 12: 300}
"""Problems for depths that are measured on fewer: a model at one iteration rambles, deep ones cost more."""
TRACED = 100

SWEEPS: dict[str, tuple[DepthPolicy, ...]] = {
    "LatentDiff": tuple(LatentDiff(threshold) for threshold in (0.5, 0.35, 0.25, 0.15, 0.08)),
    "Cosine": tuple(Cosine(threshold) for threshold in (0.1, 0.05, 0.025, 0.01, 0.003)),
    "KL": tuple(KL(threshold) for threshold in (0.1, 0.01, 1e-3)),
    "MinPKL": tuple(MinPKL(threshold) for threshold in (0.1, 0.01, 1e-4)),
    "EntropyDiff": tuple(EntropyDiff(threshold) for threshold in (0.1, 0.01, 1e-3)),
    "ArgmaxStability": tuple(ArgmaxStability(threshold) for threshold in (1, 2, 3)),
}
"""Every exit criterion over thresholds, loosest first."""

BY_ROLE = ByRole(root=LatentDiff(0.09), otherwise=LatentDiff(0.22))
"""Roots copy the answer, where a token that leaves early costs the whole problem: deeper than others, at equal mean."""

LATENT, LOGITS = 300, 100
"""Problems for criteria that read latent states, and for those that read logits, which are slower."""


def fixed(iterations: int) -> Cell:
    return parallel(depth=Fixed(iterations), count=COUNTS.get(iterations, 1000))


def full_depth() -> Cell:
    return parallel(depth=Fixed())


def by_role() -> Cell:
    return parallel(depth=BY_ROLE)


def sweep_cells() -> dict[str, list[Cell]]:
    return {
        name: [parallel(depth=policy, count=LATENT if policy.reads == "latent" else LOGITS) for policy in policies]
        for name, policies in SWEEPS.items()
    }


def cells() -> list[Cell]:
    return [
        *(fixed(iterations) for iterations in ITERATIONS),
        full_depth(),
        parallel(),
        by_role(),
        *(cell for swept in sweep_cells().values() for cell in swept),
        parallel(is_traced=True, count=TRACED),
    ]


def loss(full: Result, result: Result) -> float:
    """How much less of its problems a cell solves than full depth solves of the same ones; in shares."""
    # Counted in problems: a difference of shares would be off by a rounding error.
    return (_right(first_of(full, result.count)) - _right(result)) / result.count


def _right(result: Result) -> int:
    return sum(record.is_right for records in result.records for record in records)


def section(results: Results, oracle: Oracle) -> Section:
    full = results.get(full_depth())
    by_depth = [result for r in ITERATIONS if (result := results.get(fixed(r))) is not None]
    swept = {name: results.of(cells) for name, cells in sweep_cells().items()}
    swept["LatentDiff by role"] = results.of([by_role()])
    own = results.of([parallel()])
    traced = results.get(parallel(is_traced=True, count=TRACED))
    kinds = {} if traced is None else traced.depths
    return Section(
        title="Iterations",
        text=(
            "The parallel model with unlimited children. Fixed depth gives every token the same iterations; exit "
            "criteria run each token until their value falls below a threshold, at most to the mean recurrence. Depth "
            "is iterations a computed token. Loss is against full depth on the same problems.",
            "Depth by kind of token is that of sampled tokens under the checkpoint's own policy, from a trace of "
            f"{TRACED} problems: " + "; ".join(f"{kind}: {meaning}" for kind, meaning in KINDS.items()) + ".",
        ),
        figures=(
            Figure(
                name="countdown-iterations",
                title="Accuracy against iterations",
                x_label="iterations of every token",
                y_label="accuracy",
                series=(Series(name="Fixed(r)", points=_points(by_depth)),),
            ),
            Figure(
                name="countdown-exits",
                title="Accuracy against mean depth",
                x_label="iterations a computed token, mean",
                y_label="accuracy",
                series=(
                    Series(
                        name="Fixed(r)",
                        points=_points([result for result in by_depth if result.depth < 7]),
                        style="dashed",
                    ),
                    *(Series(name=name, points=_points(found)) for name, found in swept.items()),
                    Series(name="checkpoint's own", points=_points(own), style="points"),
                ),
            ),
            Bars(
                name="countdown-kinds",
                title="Depth by kind of token",
                y_label="iterations a token, mean",
                bars={kind: kinds[kind][1] / kinds[kind][0] for kind in KINDS if kind in kinds},
            ),
        ),
        tables=(
            Table(
                columns=("policy", "N", "depth", "accuracy", "loss", "token-iterations"),
                rows=tuple(
                    _row(name, result, full)
                    for name, result in (
                        *((repr(result.cell.depth), result) for result in by_depth),
                        *((repr(result.cell.depth), result) for found in swept.values() for result in found),
                        *(("checkpoint's own", result) for result in own),
                    )
                ),
            ),
            Table(
                columns=("kind of token", "sampled", "mean depth"),
                rows=tuple((kind, kinds[kind][0], kinds[kind][1] / kinds[kind][0]) for kind in KINDS if kind in kinds),
            ),
        ),
    )


def _points(results: list[Result]) -> tuple[Point, ...]:
    return tuple(Point(result.depth, result.accuracy) for result in results)


def _row(name: str, result: Result, full: Result | None) -> tuple[Value, ...]:
    lost = None if full is None or full.count < result.count else loss(full, result)
    return name, result.count, result.depth, result.accuracy, lost, result.mean("iterations")
