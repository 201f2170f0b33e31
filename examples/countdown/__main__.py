"""Solves Countdown problems by a tree of reasoning threads that the model spawns and joins, or by a single thread.

python -m examples.countdown 22 26 31 53 --target 27
python -m examples.countdown 22 26 31 53 --target 27 --children 6
python -m examples.countdown 22 26 31 53 8 --target 27
python -m examples.countdown 22 26 31 53 --target 27 --serial
python -m examples.countdown --problems problems.json --limit 100 --json
"""

from __future__ import annotations

import argparse
import sys
from contextlib import AsyncExitStack
from functools import partial

import anyio
import msgspec
from rich.live import Live

from examples.countdown.problems import LARGEST_VALUE, SIZES, Problem, problems_of
from examples.countdown.solve import LIMITS, evaluate, solve
from examples.countdown.vocabulary import CHILDREN, MOST_CHILDREN, NESTED, WINDOWS, WITHIN, WORDS
from policies import AllChildren, Fixed, Limits, MaxChildren, Policy
from runtime import Engine
from runtime.console import Printer, output_file, status_of, whole
from runtime.link import RunStarted, Spawned
from traces import LiveTree

OPENING = "Opening the engine (at its first start it compiles native code, which takes 15 to 30 seconds)"

MOST_ITERATIONS = 64
"""Far more than the model was trained with."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.countdown", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("numbers", nargs="*", type=whole(0, LARGEST_VALUE), help="the numbers to combine")
    parser.add_argument("--target", type=whole(0, LARGEST_VALUE), help="what to reach")
    parser.add_argument(
        "--problems", type=problems_of, metavar="FILE", help='JSON list of {"nums": [...], "target": n}'
    )
    parser.add_argument("--limit", type=whole(1), help="only the first so many problems")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--checkpoint", help="name or directory (default: countdown; with --serial: countdown-serial)")
    parser.add_argument(
        "--iterations", type=whole(1, MOST_ITERATIONS), help="a token (default: as the checkpoint says)"
    )
    parser.add_argument("--children", type=whole(0), metavar="K", help="at most K children a thread; the model is told")
    parser.add_argument("--nested", action="store_true", help="the root spawns a thread per pair of numbers")
    parser.add_argument("--serial", action="store_true", help="a single thread that searches one thing after another")
    parser.add_argument(
        "--within", type=int, choices=WINDOWS, help="with --serial: the most tokens that the thread may have"
    )
    parser.add_argument("--trace", type=output_file, help="record the run into this file")
    given = parser.parse_args()
    if (given.problems is None) == (not given.numbers):
        parser.error("give either numbers and --target, or --problems FILE")
    if given.numbers and given.target is None:
        parser.error("--target is missing: what should the numbers reach?")
    if given.numbers and given.limit is not None:
        parser.error("--limit goes with --problems")
    if given.problems is not None and given.target is not None:
        parser.error("--target goes with numbers; every problem of --problems has its own")
    if given.numbers and len(given.numbers) not in SIZES:
        parser.error(f"this model was trained on four numbers and some on five; got {len(given.numbers)}")
    if given.serial and (given.nested or given.children is not None):
        parser.error("--serial has no children: leave out --nested and --children")
    if given.within is not None and not given.serial:
        parser.error("--within goes with --serial")
    if given.nested and (given.children is not None or len(given.numbers) == 5):
        parser.error("--nested is for four numbers, without --children")
    return given


class Setting(msgspec.Struct, frozen=True):
    """How problems are asked, and what bounds the engine that answers."""

    condition: str
    context: int | None
    policy: Policy | None
    limits: Limits


def setting_for(given: argparse.Namespace, problems: list[Problem]) -> Setting:
    """Of four numbers, the model is told of up to `MOST_CHILDREN` children and held to it; else a policy bounds it."""
    is_four = all(len(problem.nums) == 4 for problem in problems)
    depth = None if given.iterations is None else Policy(depth=Fixed(given.iterations), spawn=AllChildren())
    limits = LIMITS[4 if is_four else 5]
    if given.serial:
        window = given.within or (WINDOWS[-2] if is_four else WINDOWS[-1])
        return Setting(f"{WITHIN} {window}", window, depth, limits)
    if given.nested:
        return Setting(NESTED, None, depth, limits)
    if given.children is None:
        return Setting("", None, depth, limits)
    if is_four and 1 <= given.children <= MOST_CHILDREN:
        return Setting(f"{CHILDREN} {given.children}", None, depth, Limits(threads=1 + given.children))
    return Setting("", None, Policy(depth=Fixed(given.iterations), spawn=MaxChildren(given.children)), limits)


def engine_for(given: argparse.Namespace, setting: Setting, tree: LiveTree) -> Engine:
    checkpoint = given.checkpoint or ("countdown-serial" if given.serial else "countdown")
    return Engine.open(
        checkpoint,
        policy=setting.policy,
        limits=setting.limits,
        trace=given.trace,
        observer=tree.observe,
        max_context=setting.context,
    )


def question_of(event: RunStarted | Spawned) -> str:
    if isinstance(event, RunStarted):
        return event.prompt
    return " ".join(WORDS[token] for token in event.tokens)


async def solve_one(given: argparse.Namespace, problem: Problem) -> bool:
    console, tree, setting = Printer(stderr=given.json), LiveTree(question_of), setting_for(given, [problem])
    async with AsyncExitStack() as stack:
        with console.status(OPENING):
            engine = await stack.enter_async_context(engine_for(given, setting, tree))
        if given.json:
            solution = await solve(engine, problem, setting.condition)
            sys.stdout.buffer.write(msgspec.json.encode(solution) + b"\n")
            return solution.is_right
        with Live(tree, console=console, refresh_per_second=12, vertical_overflow="visible"):
            solution = await solve(engine, problem, setting.condition)
    usage = solution.usage
    if solution.is_right:
        console.print(f"\n[bold green]{solution.expression} = {problem.target}[/]")
    else:
        console.print(f"\n[bold red]no solution found[/] (the model answered: {solution.expression})")
    console.print(
        f"{usage.threads} threads, {usage.generated} tokens sampled, {usage.computed} computed, "
        f"{usage.iterations} token-iterations, longest context {usage.max_context}, {usage.seconds:.2f} s"
    )
    return solution.is_right


async def solve_set(given: argparse.Namespace) -> None:
    problems = given.problems[: given.limit]
    setting = setting_for(given, problems)
    async with engine_for(given, setting, LiveTree(question_of)) as engine:
        evaluation, _ = await evaluate(engine, problems, condition=setting.condition)
    if given.json:
        sys.stdout.buffer.write(msgspec.json.encode(evaluation) + b"\n")
    else:
        Printer().print(msgspec.to_builtins(evaluation))


async def main() -> int:
    given = arguments()
    if given.problems is None:
        return 0 if await solve_one(given, Problem(tuple(given.numbers), given.target)) else 1
    await solve_set(given)
    return 0


if __name__ == "__main__":
    sys.exit(status_of(partial(anyio.run, main)))
