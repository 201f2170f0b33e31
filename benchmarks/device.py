"""What ticks take on this machine, by what is in them: a device for `python -m traces simulate --device`.

The embedded model answers 1 to 256 problems at a time, briefly and at length, into a trace; costs are fitted to that.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from anyio.from_thread import start_blocking_portal

from benchmarks.answering import CHECKPOINT, Load, open_engine, record_loads
from benchmarks.machine import Environment
from benchmarks.result import Result
from traces import costs_of


class Size(msgspec.Struct, frozen=True, kw_only=True):
    threads: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    answers: int = 8
    """At least so many of each load, and one for each thread."""
    max_tokens: tuple[int, ...] = (32, 256)
    """Short answers make many ticks in which tokens enter and leave, long ones many keys."""

    @property
    def loads(self) -> list[Load]:
        return [Load(threads, max(self.answers, threads), most) for threads in self.threads for most in self.max_tokens]


def measure(size: Size, rounds: int) -> Result:
    with TemporaryDirectory() as directory, start_blocking_portal() as portal:
        path = Path(directory) / "loads.trace"
        engine = open_engine()
        with portal.wrap_async_context_manager(engine):
            # What is measured is not what the first ticks take.
            portal.call(record_loads, engine, size.loads[:2], path, 0)
            portal.call(record_loads, engine, size.loads * rounds, path, 1)
        costs = costs_of(path, machine=str(Environment.here()))
    figures = {
        f"{name}, from {knot}" if len(steps) > 1 else name: seconds * 1e6
        for name, steps in costs.figures.items()
        for knot, seconds in steps
    }
    return Result(
        name="device",
        title=f"microseconds, fitted to {costs.calls} calls",
        columns=("checkpoint", *figures),
        rows=((CHECKPOINT, *figures.values()),),
        notes=(
            f"{costs.in_flight.greatest:.0f} tokens in flight and {costs.keys_read.greatest:.0f} keys a tick at most",
            f"single ticks: off by {costs.call_error.median:.0%}, nine in ten by at most {costs.call_error.p90:.0%}",
            f"pauses between calls: by {costs.host_error.median:.0%} and {costs.host_error.p90:.0%}",
        ),
        device=costs,
    )
