"""The program orchestrates: one child per first operation, and the first that wins cancels the others.

python -m examples.search 22 26 31 53 --target 27
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

import anyio

from examples.countdown.problems import LARGEST_VALUE, Problem
from examples.countdown.search import first_steps, question_words, words_of
from examples.countdown.solve import solution_of
from runtime import Engine
from runtime.console import status_of, whole


async def main(problem: Problem) -> None:
    target = problem.target
    messages = [
        " ".join([*words_of([step]), *question_words(target, rest)]) for step, rest in first_steps(problem.key[0])
    ]
    async with Engine.open("countdown") as engine, engine.thread(problem.prompt) as root:
        children = [root.spawn(message) for message in messages]
        first = await root.first(children)
        if first is None:
            print(f"none of {len(children)} children found a way to {target}")
            return
        solution = solution_of(problem, first)
        print(f"child {first.path} of {len(children)}: {solution.expression} = {target}, right: {solution.is_right}")
        print(f"{root.usage.generated} tokens until then; the other children are gone and their pages are free")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs=4, type=whole(0, LARGEST_VALUE))
    parser.add_argument("--target", type=whole(0, LARGEST_VALUE), required=True)
    given = parser.parse_args()
    sys.exit(status_of(partial(anyio.run, main, Problem(tuple(given.numbers), given.target))))
