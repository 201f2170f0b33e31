"""Simulated against measured: tokens a second and latencies of the embedded model, so many threads at a time.

Costs are fitted twice, to a trace of 8 threads and to one of loads from 1 to 256 threads, both of other problems than
those that are then measured and predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
from anyio.from_thread import start_blocking_portal

from benchmarks import device
from benchmarks.answering import Load, Measured, open_engine, record_loads
from benchmarks.result import Aim, Cell, Result, Spread
from traces import Prediction, Scenario, costs_of, simulate

FITS = ("8 threads", "1 to 256 threads")


class Size(msgspec.Struct, frozen=True, kw_only=True):
    threads: tuple[int, ...] = (1, 32, 128)
    answers: int = 64
    """At least so many a round, and at least four for each thread."""
    max_tokens: int = 256
    fitted: device.Size = device.Size()
    eight: Load = Load(8, 64)


class _Figures(msgspec.Struct, frozen=True):
    """What is compared."""

    tokens_per_second: float
    p50: float
    p95: float

    @classmethod
    def of_measured(cls, measured: Measured) -> _Figures:
        p50, p95 = np.percentile(measured.latencies, (50, 95))
        return cls(measured.tokens / measured.seconds, float(p50), float(p95))

    @classmethod
    def of_predicted(cls, predicted: Prediction) -> _Figures:
        return cls(predicted.tokens_per_second, predicted.latency.p50, predicted.latency.p95)


NAMES = {"tokens_per_second": "tokens/s", "p50": "p50", "p95": "p95"}
BOUNDS = {"tokens_per_second": 0.15, "p50": 0.25, "p95": 0.25}


def measure(size: Size, rounds: int) -> Result:
    measured: dict[int, list[_Figures]] = {threads: [] for threads in size.threads}
    predicted: dict[tuple[int, str], list[_Figures]] = {(threads, fit): [] for threads in size.threads for fit in FITS}
    with TemporaryDirectory() as directory, start_blocking_portal() as portal:
        engine = open_engine()
        with portal.wrap_async_context_manager(engine):
            paths = {fit: Path(directory) / f"fit-{number}.trace" for number, fit in enumerate(FITS)}
            portal.call(record_loads, engine, [size.eight], paths[FITS[0]], 0)
            for number in range(rounds):
                portal.call(record_loads, engine, [size.eight], paths[FITS[0]], 3 * number + 1)
                portal.call(record_loads, engine, size.fitted.loads, paths[FITS[1]], 3 * number + 2)
                costs = {fit: costs_of(path, machine="here") for fit, path in paths.items()}
                for threads in size.threads:
                    load = Load(threads, max(size.answers, 4 * threads), size.max_tokens)
                    path = Path(directory) / f"{threads}.trace"
                    measured[threads] += map(
                        _Figures.of_measured, portal.call(record_loads, engine, [load], path, 3 * number + 3)
                    )
                    for fit in FITS:
                        found = simulate(path, [Scenario(concurrency=threads)], device=costs[fit])
                        predicted[threads, fit].append(_Figures.of_predicted(found.predictions[0]))
    return _result(size, measured, predicted)


def _result(
    size: Size, measured: dict[int, list[_Figures]], predicted: dict[tuple[int, str], list[_Figures]]
) -> Result:
    rows: list[tuple[Cell, ...]] = []
    aims: list[Aim] = []
    for threads in size.threads:
        row: list[Cell] = [threads]
        for name, title in NAMES.items():
            real = _values(measured[threads], name)
            row.append(_shown(real, name))
            for fit in FITS:
                said = _values(predicted[threads, fit], name)
                row.append(_shown(said, name))
                off = float(np.median(np.array(said) / np.array(real))) - 1.0
                row.append(f"{off:+.0%}")
                if fit == FITS[1]:
                    figure = f"{threads} threads, {title}, off by"
                    aims.append(Aim(figure=figure, measured=abs(off), bound=BOUNDS[name], is_lower_better=True))
        rows.append(tuple(row))
    columns = ["threads"]
    for title in NAMES.values():
        unit = "" if title == "tokens/s" else ", ms"
        columns.append(f"{title}{unit}, measured")
        for fit in FITS:
            columns += [f"fitted to {fit}", "off by"]
    return Result(
        name="simulate",
        title="a simulation against what it predicts, the embedded model with a trace",
        columns=tuple(columns),
        rows=tuple(rows),
        aims=tuple(aims),
    )


def _values(figures: Sequence[_Figures], name: str) -> list[float]:
    return [getattr(each, name) for each in figures]


def _shown(values: Sequence[float], name: str) -> Spread:
    return Spread.of(values if name == "tokens_per_second" else (value * 1e3 for value in values))
