"""Solves Countdown problems by a tree of reasoning threads that the model spawns and joins.

python -m examples.countdown 22 26 31 53 --target 27
python -m examples.countdown --problems problems.json --limit 100 --json
"""

from __future__ import annotations

import argparse
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import msgspec
from rich.console import Console
from rich.live import Live

from examples.countdown.live import LiveTree
from examples.countdown.problems import LARGEST_VALUE, Problem, read_problems
from examples.countdown.solve import evaluate, solve
from policies import AsAsked, ChildBudget, Fixed, Policy
from runtime import BraidError, Engine

OPENING = "Opening the engine (at its first start it compiles native code, which takes about a quarter of a minute)"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.countdown", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("numbers", nargs="*", type=int, help="the numbers to combine")
    parser.add_argument("--target", type=int, help="what to reach")
    parser.add_argument("--problems", type=Path, metavar="FILE", help='JSON list of {"nums": [...], "target": n}')
    parser.add_argument("--limit", type=int, help="only the first so many problems")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--checkpoint", default="countdown", help="name or directory (default: %(default)s)")
    parser.add_argument("--iterations", type=int, help="iterations a token (default: the checkpoint's policy)")
    parser.add_argument("--children", type=int, help="most children of a thread")
    parser.add_argument("--trace", type=Path, help="record the run into this file")
    given = parser.parse_args()
    if (given.problems is None) == (not given.numbers):
        parser.error("give either numbers and --target, or --problems FILE")
    if given.numbers and given.target is None:
        parser.error("--target is missing: what should the numbers reach?")
    values = [*given.numbers, given.target] if given.numbers else []
    if any(not 0 <= value <= LARGEST_VALUE for value in values):
        parser.error(f"this model reads numbers from 0 to {LARGEST_VALUE}")
    if given.numbers and len(given.numbers) != 4:
        parser.error(f"this model was trained on four numbers; got {len(given.numbers)}")
    return given


def engine_for(given: argparse.Namespace, tree: LiveTree) -> Engine:
    policy = None
    if given.iterations is not None or given.children is not None:
        spawn = AsAsked() if given.children is None else ChildBudget(given.children)
        policy = Policy(depth=Fixed(given.iterations), spawn=spawn)
    return Engine.open(given.checkpoint, policy=policy, trace=given.trace, observer=tree.observe)


async def solve_one(given: argparse.Namespace, problem: Problem) -> bool:
    console, tree = Console(stderr=given.json), LiveTree()
    async with AsyncExitStack() as stack:
        with console.status(OPENING):
            engine = await stack.enter_async_context(engine_for(given, tree))
        if given.json:
            solution = await solve(engine, problem)
            sys.stdout.buffer.write(msgspec.json.encode(solution) + b"\n")
            return solution.is_right
        with Live(tree, console=console, refresh_per_second=12, vertical_overflow="visible"):
            solution = await solve(engine, problem)
    usage = solution.usage
    if solution.is_right:
        console.print(f"\n[bold green]{solution.expression} = {problem.target}[/]")
    else:
        console.print(f"\n[bold red]no solution found[/] (the model answered: {solution.expression})")
    console.print(
        f"{usage.threads} threads, {usage.sampled} tokens sampled, {usage.computed} computed, "
        f"{usage.iterations} token-iterations, longest context {usage.longest}, {usage.seconds:.2f} s"
    )
    return solution.is_right


async def solve_set(given: argparse.Namespace) -> None:
    problems = read_problems(given.problems)[: given.limit]
    async with engine_for(given, LiveTree()) as engine:
        evaluation, _ = await evaluate(engine, problems)
    if given.json:
        sys.stdout.buffer.write(msgspec.json.encode(evaluation) + b"\n")
    else:
        Console().print(msgspec.to_builtins(evaluation))


async def main() -> int:
    given = arguments()
    try:
        if given.problems is None:
            return 0 if await solve_one(given, Problem(tuple(given.numbers), given.target)) else 1
        await solve_set(given)
    except (BraidError, ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(anyio.run(main))
