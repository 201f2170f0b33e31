"""Evaluates the Countdown checkpoints and writes what they do into docs/: a JSON file, Markdown and figures.

python -m benchmarks.countdown.report
python -m benchmarks.countdown.report --problems PROBLEMS.json --limit 20 --output runs/quick

Killed, it goes on with the first evaluation that was not finished. Latencies want a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import random
import sys
from functools import partial
from itertools import islice
from pathlib import Path

import anyio
from rich.console import Console

from benchmarks.countdown.report.cells import ModelName
from benchmarks.countdown.report.command import SECTIONS, cells_of, compose, evaluate_cells, find_checkpoints, write
from benchmarks.countdown.report.oracle import consult
from benchmarks.countdown.report.results import ProblemSets, ResultStore
from benchmarks.countdown.report.sections.five import COUNT as FIVE_COUNT
from examples.countdown.problems import draw_problems, read_problems
from runtime.console import input_file, output_directory, status_of, whole

HERE = Path(__file__).parents[1]
"""Where the problems and the checkpoints of the experiment lie."""

FIVE_SEED = "five numbers"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.countdown.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--problems",
        type=input_file,
        default=HERE / "validation.json",
        help='JSON list of {"nums": [...], "target": n} that no model was trained on (default: validation.json here)',
    )
    parser.add_argument("--limit", type=whole(1), help="only the first so many problems, for a quick look")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections (default: all)")
    parser.add_argument("--parallel", default="countdown", help="checkpoint, name or directory (default: %(default)s)")
    parser.add_argument("--serial", default="countdown-serial", help="its serial rival (default: %(default)s)")
    for name in ("parallel-supervised", "serial-supervised"):
        default = str(HERE / "checkpoints" / name)
        parser.add_argument(f"--{name}", default=default, help=f"before RL (default: checkpoints/{name} here)")
    parser.add_argument("--output", type=output_directory, default="docs", help="directory (default: %(default)s)")
    parser.add_argument(
        "--cache",
        type=output_directory,
        default="runs/report",
        help="finished cells (default: %(default)s)",
    )
    return parser.parse_args()


def problem_sets(given: argparse.Namespace) -> ProblemSets:
    """The validation problems, and five-number ones that are always the same."""
    of_five = draw_problems(random.Random(FIVE_SEED), count=5)
    return {
        "four": read_problems(given.problems)[: given.limit],
        "five": list(islice(of_five, min(FIVE_COUNT, given.limit or FIVE_COUNT))),
    }


async def main() -> int:
    given = arguments()
    console = Console(stderr=True)
    paths: dict[ModelName, str] = {
        "parallel": given.parallel,
        "serial": given.serial,
        "parallel-supervised": given.parallel_supervised,
        "serial-supervised": given.serial_supervised,
    }
    problems = problem_sets(given)
    checkpoints, missing = find_checkpoints(paths)
    for name in missing:
        console.print(f"[yellow]There is no checkpoint {name}; what needs it is left out.[/]")
    with console.status("Asking the solvers"):
        oracle = await anyio.to_thread.run_sync(partial(consult, problems["four"]))
    store = ResultStore(given.cache)
    results = await evaluate_cells(cells_of(given.only), checkpoints, problems, store, console)
    report = compose(given.only, results, oracle, problems, given.problems.name, given.limit, missing)
    write(report, given.output)
    console.print(f"Written: {given.output / 'countdown.md'}, countdown.json and figures/")
    return 0


if __name__ == "__main__":
    sys.exit(status_of(partial(anyio.run, main)))
