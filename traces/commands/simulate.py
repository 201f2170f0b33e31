"""`python -m traces simulate`: what a trace would take under another load, on more replicas, or on another device."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import TypeVar, get_args

import msgspec
from rich.progress import Progress

from policies import DepthPolicy
from runtime import EngineSettings
from runtime.console import Printer, input_directory, input_file, output_file, visible, whole
from traces.commands.expressions import policy_of
from traces.commands.reading import OpenDevice, warn_lost
from traces.reader import TraceReader
from traces.simulation.costs import read_costs
from traces.simulation.running import settings_of, simulate
from traces.simulation.scenario import Arrivals, Order, Scenario
from traces.simulation.showing import costs_lines, extrapolation, predictions_tables

MOST = 1_000_000
"""Questions, replicas and lanes that anybody has."""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "simulate", help="predict latency, tokens/s and memory under another load, on replicas or on another device"
    )
    parser.add_argument("file", type=input_file)
    parser.add_argument(
        "--concurrency",
        type=_list_of(whole(1, MOST)),
        default=[1, 8, 64],
        metavar="N,...",
        help="most questions in progress at a time, on all replicas (default: 1,8,64)",
    )
    parser.add_argument("--replicas", type=_list_of(whole(1, 10_000)), default=[1], metavar="N,...")
    parser.add_argument(
        "--arrivals",
        type=_arrivals,
        default=Arrivals(),
        metavar="RATE",
        help="poisson:20/s, even:3/min, or at-once (default), where a question comes when another is answered",
    )
    orders = get_args(Order)
    parser.add_argument(
        "--order", type=_list_of(_one_of(orders)), default=["depth-first"], metavar="ORDER,...", help=", ".join(orders)
    )
    parser.add_argument(
        "--depth", metavar="POLICY", help="bounds depths, such as 'ByLoad(Fixed(6), least=2)' (default: as recorded)"
    )
    parser.add_argument(
        "--device",
        type=input_file,
        metavar="FILE",
        help="of `python -m benchmarks device --json FILE` (default: fitted)",
    )
    parser.add_argument(
        "--checkpoint", type=input_directory, metavar="DIR", help="where the model's config.json is now"
    )
    parser.add_argument("--questions", type=whole(1, MOST), metavar="N", help="asked in all (default: each once)")
    parser.add_argument("--one-tree", action="store_true", help="all questions are children of one root, asked at once")
    parser.add_argument("--pages", type=whole(1), metavar="N", help="in the pool of a replica (default: as recorded)")
    parser.add_argument("--lanes", type=whole(1, MOST), metavar="N", help="tokens in flight (default: as recorded)")
    parser.add_argument("--seed", type=whole(0), default=0, help="of random arrivals (default: 0)")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write everything there as well")
    parser.set_defaults(run=partial(_simulate, parser))


def _simulate(parser: argparse.ArgumentParser, options: argparse.Namespace, open_device: OpenDevice) -> int:
    depth: DepthPolicy | None = None
    if options.depth is not None:
        try:
            depth = policy_of("depth", options.depth, {})
        except ValueError as error:
            parser.error(f"--depth: {error}")
    scenarios = [
        Scenario(
            concurrency=concurrency,
            replicas=replicas,
            arrivals=options.arrivals,
            order=order,
            questions=options.questions,
            as_one_tree=options.one_tree,
            seed=options.seed,
        )
        for concurrency, replicas, order in product(options.concurrency, options.replicas, options.order)
    ]
    device = None if options.device is None else read_costs(options.device)
    with Progress(disable=not sys.stderr.isatty(), transient=True) as progress:
        task = progress.add_task("simulating", total=len(scenarios))
        found = simulate(
            options.file,
            scenarios,
            device=device,
            depth=depth,
            checkpoint=options.checkpoint,
            settings=_settings(options),
            progress=lambda _: progress.advance(task),
        )
    if found.lost is not None:
        warn_lost(options.file, found.lost)
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    printer = Printer()
    for line in costs_lines(found.costs, is_fitted=found.is_fitted):
        printer.print(visible(line), markup=False, highlight=False, soft_wrap=True)
    for table in predictions_tables(found.predictions):
        printer.print(table)
    warning = extrapolation(found)
    if warning is not None:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def _settings(options: argparse.Namespace) -> EngineSettings | None:
    """The recorded ones with what is named in their place; None where nothing is."""
    named = {"num_pages": options.pages, "max_in_flight": options.lanes}
    given = {name: value for name, value in named.items() if value is not None}
    if not given:
        return None
    with TraceReader(options.file) as reader:
        settings = settings_of(reader.header)
    if "max_in_flight" in given:
        given["prefill_chunk"] = min(settings.prefill_chunk, given["max_in_flight"])
    return msgspec.structs.replace(settings, **given)


T = TypeVar("T")


def _list_of(read: Callable[[str], T]) -> Callable[[str], list[T]]:
    return lambda text: [read(part) for part in text.split(",")]


def _one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"is {text!r}; give {', '.join(choices)}")
        return text

    return read


def _arrivals(text: str) -> Arrivals:
    try:
        return Arrivals.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
