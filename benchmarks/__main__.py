"""`python -m benchmarks [NAME ...] [--rounds N] [--json FILE]`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec
from rich.console import Console

from benchmarks import backends, continuous, depthwise, fork, overhead, parked, peaks, speculation
from benchmarks.result import Environment, Report, Result, as_table

BENCHMARKS: dict[str, Callable[[int], Result]] = {
    "depthwise": partial(depthwise.measure, depthwise.Size()),
    "overhead": partial(overhead.measure, overhead.Size()),
    "peaks": partial(peaks.measure, peaks.Size()),
    "backends": partial(backends.measure, backends.Size()),
    "parked": partial(parked.measure, parked.Size()),
    "fork": partial(fork.measure, fork.Size()),
    "continuous": partial(continuous.measure, continuous.Size()),
    "speculation": partial(speculation.measure, speculation.Size()),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}; all if none is named"
    )
    parser.add_argument("--rounds", type=int, default=5, help="times that every side is measured (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    chosen = parser.parse_args(arguments)
    unknown = [name for name in chosen.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if chosen.rounds < 1:
        parser.error(f"--rounds is {chosen.rounds}; it must be at least 1")
    console, results = Console(), []
    for name in chosen.names or BENCHMARKS:
        results.append(BENCHMARKS[name](chosen.rounds))
        console.print(as_table(results[-1]))
        console.print()
    if chosen.json is not None:
        report = Report(environment=Environment.here(), rounds=chosen.rounds, results=tuple(results))
        chosen.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")


if __name__ == "__main__":
    main()
