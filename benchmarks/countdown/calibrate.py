"""Chooses how deep a Countdown checkpoint thinks about each token, and writes that down as its default policy.

python -m benchmarks.countdown.calibrate DIRECTORY --depth 3.6 --exclude problems.json --write

Draws problems, lets the engine solve them at full depth, and calibrates each exit criterion on what was said: to a
wanted mean depth, or to a price of an iteration in sampled tokens that differ. The best is then checked on other
problems, through the engine, against full depth.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio
import msgspec
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from examples.countdown.problems import Key, Problem, draw_problems, problems_of
from examples.countdown.solve import LIMITS, Evaluation, Solution, evaluate
from policies import DepthPolicy, Fixed, Policy, to_builtins
from policies.training import CRITERIA, Calibration, CalibrationSet, ThreadTokens, best, save_default_policy, threads_in
from runtime import Engine
from runtime.console import Printer, number, status_of, whole
from runtime.model import Transformer, load_checkpoint, resolve
from traces import read


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` prints."""

    calibrations: tuple[Calibration, ...]
    """One of each criterion, on the problems that it was calibrated on."""
    chosen: Calibration
    full: Evaluation
    """At full depth, on the other problems."""
    adaptive: Evaluation
    """Under the chosen rule, on the same."""
    lost: int
    """Problems that are solved at full depth only."""
    won: int
    """Problems that are solved under the chosen rule only."""
    written: bool


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.countdown.calibrate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="directory of a checkpoint, or the name of a shipped one")
    wish = parser.add_mutually_exclusive_group()
    wish.add_argument("--depth", type=number(1), help="wanted iterations a token (default: 60 %% of the model's mean)")
    wish.add_argument("--price", type=number(0), help="share of sampled tokens that one iteration a token is worth")
    names = [type(criterion).__name__ for criterion in CRITERIA]
    parser.add_argument("--criteria", nargs="+", choices=names, default=names, help="which to try (default: all)")
    parser.add_argument("--problems", type=whole(1), default=60, help="how many to calibrate on, and to check on")
    parser.add_argument("--exclude", type=problems_of, action="append", default=[], help="problems never to draw")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the problems")
    parser.add_argument("--write", action="store_true", help="write the chosen rule into the checkpoint's braid.json")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def draw(given: argparse.Namespace) -> tuple[list[Problem], list[Problem]]:
    """Problems to calibrate on, and others to check on."""
    excluded = {problem.key for problems in given.exclude for problem in problems}
    source = draw_problems(random.Random(f"calibration/{given.seed}"), excluded=excluded)
    drawn: dict[Key, Problem] = {}
    while len(drawn) < 2 * given.problems:
        problem = next(source)
        drawn.setdefault(problem.key, problem)
    listed = list(drawn.values())
    return listed[: given.problems], listed[given.problems :]


async def record(directory: Path, problems: list[Problem]) -> list[ThreadTokens]:
    """What the engine says to the problems at full depth."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "full.trace")
        async with Engine.open(directory, policy=Policy(depth=Fixed()), limits=LIMITS[4], trace=path) as engine:
            await evaluate(engine, problems)
        return threads_in(read(path))


async def solve_with(directory: Path, depth: DepthPolicy, problems: list[Problem]) -> tuple[Evaluation, list[Solution]]:
    async with Engine.open(directory, policy=Policy(depth=depth), limits=LIMITS[4]) as engine:
        return await evaluate(engine, problems)


def calibrate(
    model: Transformer, threads: Sequence[ThreadTokens], given: argparse.Namespace
) -> tuple[list[Calibration], Calibration]:
    """One calibration of each criterion, and the best."""
    torch.set_num_threads(1)
    asked = [criterion for criterion in CRITERIA if type(criterion).__name__ in given.criteria]
    measured = CalibrationSet(model, threads, asked)
    wanted = 0.6 * model.specification.mean_recurrence if given.depth is None else given.depth
    found = []
    for criterion in track(asked, "Calibrating", console=Console(stderr=True), transient=True):
        if given.price is None:
            found.append(measured.at_depth(criterion, wanted))
        else:
            found.append(measured.at_price(criterion, given.price))
    return found, best(found, mean_depth=wanted) if given.price is None else best(found, price=given.price)


def show(report: Report) -> None:
    table = Table("exit rule", "mean depth", "agreement", title="Calibrated, at full depth's own tokens")
    for each in report.calibrations:
        style = "bold" if each == report.chosen else ""
        table.add_row(repr(each.policy), f"{each.mean_depth:.3f}", f"{each.agreement:.5f}", style=style)
    console = Printer()
    console.print(table)
    full, adaptive = report.full, report.adaptive
    console.print(
        f"{full.problems} other problems: {full.accuracy:.3f} solved at depth {full.depth:.2f}, "
        f"{adaptive.accuracy:.3f} at {adaptive.depth:.2f} ({report.lost} lost, {report.won} won); "
        f"{full.iterations:.0f} and {adaptive.iterations:.0f} token-iterations a problem"
    )


async def main() -> int:
    given = arguments()
    directory = resolve(given.checkpoint)
    to_calibrate, to_check = draw(given)
    model = load_checkpoint(directory).model
    if not isinstance(model, Transformer):
        raise ValueError(f"{directory}: exit rules are for depth-recurrent models; this is none.")
    found, chosen = calibrate(model, await record(directory, to_calibrate), given)
    full, at_full = await solve_with(directory, Fixed(), to_check)
    adaptive, at_chosen = await solve_with(directory, chosen.policy, to_check)
    if given.write:
        save_default_policy(directory, chosen.policy)
    pairs = [(one.is_right, other.is_right) for one, other in zip(at_full, at_chosen, strict=True)]
    report = Report(
        calibrations=tuple(found),
        chosen=chosen,
        full=full,
        adaptive=adaptive,
        lost=pairs.count((True, False)),
        won=pairs.count((False, True)),
        written=given.write,
    )
    if given.json:
        sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    else:
        show(report)
        if given.write:
            print(f"{directory / 'braid.json'}: {to_builtins(chosen.policy)}")
    return 0


if __name__ == "__main__":
    sys.exit(status_of(partial(anyio.run, main)))
