"""A simulation as people read it: what costs say and how sure they are, and a column for each scenario."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.table import Table

from traces.simulation.costs import DeviceCosts
from traces.simulation.running import Simulation
from traces.simulation.scenario import Prediction


def costs_lines(costs: DeviceCosts, *, is_fitted: bool) -> list[str]:
    """What a device takes, in microseconds, and how well that is known."""
    whose = "fitted to this trace" if is_fitted else f"of {costs.machine}"
    lanes, keys = costs.in_flight, costs.keys_read
    return [
        f"Microseconds, {whose}, with {costs.checkpoint}:",
        "  " + "; ".join(f"{name} {_micro(steps)}" for name, steps in costs.figures.items()) + ".",
        f"Fitted to {costs.calls} calls, of {lanes.least:.0f} to {lanes.greatest:.0f} tokens in flight and "
        f"{keys.least:.0f} to {keys.greatest:.0f} keys a tick.",
        f"Single ticks are off by {costs.call_error.median:.0%} in the median (nine in ten by at most "
        f"{costs.call_error.p90:.0%}), pauses between calls by {costs.host_error.median:.0%} "
        f"({costs.host_error.p90:.0%}).",
    ]


def extrapolation(found: Simulation) -> str | None:
    """Which predictions are of more than was ever measured; None where none is."""
    beyond = [each for each in found.predictions if each.beyond > 0]
    if not beyond:
        return None
    costs, worst = found.costs, max(0.001, *(each.beyond for each in beyond))
    return (
        f"in {len(beyond)} of {len(found.predictions)} cases, up to {worst:.1%} of the calls do "
        f"more than any that the costs were fitted to ({costs.in_flight.greatest:.0f} tokens in flight, "
        f"{costs.keys_read.greatest:.0f} keys a tick): what they take is extrapolated."
    )


def predictions_tables(predictions: Sequence[Prediction]) -> list[Table]:
    """What users see, and what devices do, a line a scenario."""
    replicas = any(each.scenario.replicas > 1 for each in predictions)
    orders = len({each.scenario.order for each in predictions}) > 1
    tables = []
    for title, columns in TABLES.items():
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("at a time" + " / replicas" * replicas)
        for name in columns:
            table.add_column(name, justify="right", no_wrap=True)
        for each in predictions:
            scenario = each.scenario
            load = f"{scenario.concurrency:,}" + f" / {scenario.replicas:,}" * replicas + f" {scenario.order}" * orders
            table.add_row(load, *(shown(each) for shown in columns.values()))
        tables.append(table)
    return tables


def _micro(steps: Sequence[tuple[int, float]]) -> str:
    """What one more takes, where that changes."""
    shown = [f"{seconds * 1e6:.3g}{f' from {knot}' if knot else ''}" for knot, seconds in steps]
    changed = [text for index, text in enumerate(shown) if not index or steps[index][1] != steps[index - 1][1]]
    return ", ".join(changed)


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.9995 else f"{seconds:,.2f} s"


Column = Callable[[Prediction], str]

TABLES: dict[str, dict[str, Column]] = {
    "questions, their latencies, and in line": {
        "asked": lambda found: f"{found.questions:,}",
        "in all": lambda found: _seconds(found.seconds),
        "p50": lambda found: _seconds(found.latency.p50),
        "p95": lambda found: _seconds(found.latency.p95),
        "p99": lambda found: _seconds(found.latency.p99),
        "in line": lambda found: _seconds(found.queueing.p50),
        "line 95": lambda found: _seconds(found.queueing.p95),
    },
    "devices": {
        "tokens/s": lambda found: f"{found.tokens_per_second:,.0f}",
        "busy": lambda found: f"{found.busy:.0%}",
        "in flight": lambda found: f"{found.lanes:.1f}",
        "queued": lambda found: f"{found.waiting:,.1f}",
        "pages": lambda found: f"{found.pages:,}",
        "MB": lambda found: f"{found.memory / 1e6:,.1f}",
        "beyond": lambda found: f"{found.beyond:.1%}",
    },
    "threads and tokens": {
        "threads": lambda found: f"{found.threads:,}",
        "failed": lambda found: f"{found.failed:,}",
        "evicted": lambda found: f"{found.evictions:,}",
        "preempted": lambda found: f"{found.preemptions:,}",
        "tokens": lambda found: f"{found.tokens:,}",
        "again": lambda found: f"{found.recomputed:,}",
        "cached": lambda found: f"{found.cached_tokens:,}",
    },
}
