"""`python -m benchmarks [NAME ...] [--rounds N] [--json FILE] [--markdown FILE]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import torch

from benchmarks import (
    backends,
    cancelling,
    cluster,
    constrained,
    continuous,
    cuda,
    depthwise,
    device,
    early_exits,
    fork,
    joins,
    overhead,
    parked,
    peaks,
    recording,
    simulation,
    slack,
    speculation,
    wide,
)
from benchmarks.machine import Environment
from benchmarks.result import Report, Result, as_markdown, as_table
from runtime.console import Printer, output_file, status_of, whole

BENCHMARKS: dict[str, tuple[Callable[[int], Result], ...]] = {
    "depthwise": (
        partial(depthwise.measure, depthwise.Size()),
        partial(early_exits.measure, early_exits.Size()),
    ),
    "overhead": (partial(overhead.measure, overhead.Size()),),
    "peaks": (partial(peaks.measure, peaks.Size()),),
    "backends": (partial(backends.measure, backends.Size()),),
    "parked": (partial(parked.measure, parked.Size()),),
    "cancelling": (partial(cancelling.measure, cancelling.Size()),),
    "cluster": (partial(cluster.measure, cluster.Size()),),
    "constrained": (partial(constrained.measure, constrained.Size()),),
    "recording": (partial(recording.measure, recording.Size()),),
    "fork": (partial(fork.measure, fork.Size()),),
    "joins": (partial(joins.measure, joins.Size()),),
    "continuous": (partial(continuous.measure, continuous.Size()),),
    "speculation": (partial(speculation.measure, speculation.Size()),),
    "device": (partial(device.measure, device.Size()),),
    "slack": (partial(slack.measure, slack.Size()),),
    "simulate": (partial(simulation.measure, simulation.Size()),),
    "wide": (partial(wide.measure, wide.Size()),),
    "cuda": (
        partial(cuda.measure, cuda.Size(width=384, dtype="float32")),
        partial(cuda.measure, cuda.Size()),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"one of {', '.join(BENCHMARKS)}; all if none is named, but those that need a device that is not here",
    )
    parser.add_argument("--rounds", type=whole(1), default=5, help="times that every side is measured (default: 5)")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the results there as well")
    parser.add_argument("--markdown", type=output_file, metavar="FILE", help="write the tables there, for docs/")
    chosen = parser.parse_args(arguments)
    unknown = [name for name in chosen.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if "cuda" in chosen.names and not torch.cuda.is_available():
        parser.error("the benchmark cuda needs a CUDA device, and PyTorch sees none")
    printer, results, environment = Printer(), [], Environment.here()
    printer.print(f"{environment}\n", highlight=False, soft_wrap=True)
    for name in chosen.names or (name for name in BENCHMARKS if name != "cuda" or torch.cuda.is_available()):
        for measure in BENCHMARKS[name]:
            results.append(measure(chosen.rounds))
            printer.print(as_table(results[-1]))
            printer.print()
    report = Report(environment=environment, rounds=chosen.rounds, results=tuple(results))
    if chosen.json is not None:
        chosen.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    if chosen.markdown is not None:
        chosen.markdown.write_text(as_markdown(report), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
