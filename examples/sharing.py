"""Workers tell each other which numbers lead nowhere, so that none asks the model what another one has asked.

Problems of five numbers. Each worker has its share of the first operations; below each it tries every second one, and
lets the model search the three numbers that are left. Many ways lead to the same three.

python -m examples.sharing --problems 20
"""

from __future__ import annotations

import argparse
import random
import sys
from contextlib import suppress
from functools import partial
from itertools import islice

import anyio

from examples.countdown.problems import Problem, draw_problems
from examples.countdown.search import Branch, first_steps, question_words, words_of
from examples.countdown.solve import solution_of
from runtime import Answer, Engine, ReasoningThread, ThreadStateError
from runtime.console import status_of, whole

WORKERS = 8


async def work(problem: Problem, shares: bool, branches: list[Branch], thread: ReasoningThread) -> str | None:
    """The first way to the target that begins with one of `branches`."""
    ruled_out: set[str] = set()
    others = [(*thread.path[:-1], number) for number in range(WORKERS) if number != thread.path[-1]]
    for first, numbers in branches:
        for second, rest in first_steps(numbers):
            ruled_out |= {message.text async for message in thread.messages(waits=False)}
            name = " ".join(map(str, rest))
            if name in ruled_out:
                continue
            question = " ".join([*words_of([first, second]), *question_words(problem.target, rest)])
            (answer,) = await thread.join([thread.spawn(question)], append=False)
            if solution_of(problem, answer).is_right:
                return answer.text
            ruled_out.add(name)
            for other in others if shares else ():
                with suppress(ThreadStateError):  # it is through with its share
                    await thread.send(other, name)
    return None


async def solve(engine: Engine, problem: Problem, shares: bool) -> tuple[Answer | None, int]:
    """The first solution, and how many tokens were computed until then."""
    branches = first_steps(problem.key[0])
    async with engine.thread(problem.prompt) as root:
        for number in range(WORKERS):
            root.spawn(problem.prompt, program=partial(work, problem, shares, branches[number::WORKERS]))
        answer = await root.first(append=False)
    return answer, root.usage.computed


async def main(count: int) -> None:
    problems = list(islice(draw_problems(random.Random(7), 5), count))
    async with Engine.open("countdown") as engine:
        for shares in (False, True):
            found = [await solve(engine, problem, shares) for problem in problems]
            solved = sum(answer is not None for answer, _ in found)
            tokens = sum(computed for _, computed in found) / count
            print(f"{'with' if shares else 'without'} messages: {solved} of {count} solved, {tokens:,.0f} tokens each")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=whole(1, 1000), default=20)
    sys.exit(status_of(partial(anyio.run, main, parser.parse_args().problems)))
