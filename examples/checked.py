"""Arithmetic checked by a tool: children search, and what they return counts once a tool has worked it out.

python -m examples.checked 22 26 31 53 --target 27
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from functools import partial

import anyio

from examples.countdown.problems import LARGEST_VALUE, Problem
from examples.countdown.search import first_steps, question_words, words_of
from examples.countdown.solve import steps_in
from runtime import Engine, ReasoningThread
from runtime.console import status_of, whole

VALUES = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}


async def check(steps: str, numbers: list[int], target: int) -> str:
    """Works steps such as "53 - 31 22" out: each uses up two of the numbers, and adds its result to them."""
    left = Counter(numbers)
    for step in steps_in(steps) or []:
        for number in (step.left, step.right):
            left[number] -= 1
        value = VALUES[step.operator](step.left, step.right)
        if min(left.values()) < 0 or value != step.result:
            return f"wrong: {step.left} {step.operator} {step.right} is not {step.result}, or uses a number twice"
        left[value] += 1
    return "right" if list(left.elements()) == [target] else f"wrong: it leaves {sorted(left.elements())}"


async def main(problem: Problem) -> None:
    target, numbers = problem.target, problem.key[0]
    messages = [" ".join([*words_of([step]), *question_words(target, rest)]) for step, rest in first_steps(numbers)]

    async def search(message: str, thread: ReasoningThread) -> str | None:
        found = await thread.spawn(message)  # the model drives this one
        if not found.text:
            return None
        verdict = await thread.call("check", steps=found.text, numbers=numbers, target=target)
        print(f"child {found.path}: {found.text.strip()}: {verdict.text}")
        return found.text if verdict.text == "right" else None

    async with Engine.open("countdown") as engine:
        engine.tools.add(check, seconds=5)
        async with engine.thread(problem.prompt) as root:
            searches = [root.spawn(message, program=partial(search, message)) for message in messages]
            first = await root.first(searches)  # others, and their tools, are cancelled
            print(f"a way to {target}: {first.text.strip()}" if first else f"no way to {target}")
            print(f"{root.usage.threads} threads and {root.usage.tool_calls} tool calls")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs=4, type=whole(0, LARGEST_VALUE))
    parser.add_argument("--target", type=whole(0, LARGEST_VALUE), required=True)
    given = parser.parse_args()
    sys.exit(status_of(partial(anyio.run, main, Problem(tuple(given.numbers), given.target))))
