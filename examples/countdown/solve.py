"""Solving problems with an engine: one at a time or a whole set at once, every answer checked by evaluating it."""

from __future__ import annotations

import time

import anyio
import msgspec

from examples.countdown.problems import Problem, Step, expression_of, is_solution
from policies import Limits
from runtime import Answer, Engine, Usage

LIMITS = {4: Limits(threads=64, tree_depth=2), 5: Limits(threads=1500, tree_depth=2)}
"""By how many numbers a problem has: more than its tree needs, and an end for one that spawns without end."""


class Solution(msgspec.Struct, frozen=True):
    """What the engine answered to one problem."""

    problem: Problem
    expression: str | None
    """None where the model returned nothing, or something that is no chain of steps."""
    is_right: bool
    usage: Usage


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """A set of problems; all but the first three are means over problems, unless they say otherwise."""

    problems: int
    accuracy: float
    """Share of problems whose expression evaluates to the target and uses every number once."""
    answered: float
    """Share of problems that got any expression."""
    tokens: float
    """Sampled tokens."""
    computed: float
    """Tokens computed, prompts and messages included."""
    iterations: float
    """Token-iterations."""
    depth: float
    """Iterations a computed token."""
    children: float
    """Child threads that ran."""
    longest_thread: int
    """Tokens in the longest context of all."""
    seconds_per_problem: float
    """Wall time of the set over its number of problems: many were solved at once."""


def steps_in(text: str) -> list[Step] | None:
    """Reads `53 - 31 22  22 / 22 1 ...`; None if it is no chain of steps."""
    words = text.split()
    if len(words) % 4 or not words:
        return None
    try:
        return [
            Step(int(left), operator, int(right), int(result))
            for left, operator, right, result in zip(words[::4], words[1::4], words[2::4], words[3::4], strict=True)
        ]
    except ValueError:
        return None


def solution_of(problem: Problem, answer: Answer) -> Solution:
    steps = steps_in(answer.text)
    expression = None if steps is None else expression_of(steps, problem.nums)
    return Solution(problem, expression, expression is not None and is_solution(problem, expression), answer.usage)


def is_right(prompt: str, answer: str) -> bool:
    """Whether an answer's steps lead to what a prompt asks for, by the prompt alone; False for one of neither."""
    question, arrow, rest = prompt.partition("->")
    try:
        problem = Problem(tuple(map(int, question.split())), int(rest.split()[0]))
    except (ValueError, IndexError):
        return False
    steps = steps_in(answer)
    expression = None if not arrow or steps is None else expression_of(steps, problem.nums)
    return expression is not None and is_solution(problem, expression)


def prompt_of(problem: Problem, condition: str = "") -> str:
    """The problem, and a condition on how it is searched: `children 6`, `nested`, `within 256`."""
    return f"{problem.prompt} {condition}".rstrip()


async def solve(engine: Engine, problem: Problem, condition: str = "") -> Solution:
    return solution_of(problem, await engine.run(prompt_of(problem, condition)))


async def evaluate(
    engine: Engine, problems: list[Problem], at_once: int = 16, condition: str = ""
) -> tuple[Evaluation, list[Solution]]:
    """Solves all problems, `at_once` trees at a time; solutions are in the order of the problems."""
    solutions: dict[int, Solution] = {}
    places = anyio.CapacityLimiter(at_once)
    started = time.perf_counter()

    async def work(index: int) -> None:
        async with places:
            solutions[index] = await solve(engine, problems[index], condition)

    async with anyio.create_task_group() as group:
        for index in range(len(problems)):
            group.start_soon(work, index)
    seconds = time.perf_counter() - started
    ordered = [solutions[index] for index in range(len(problems))]
    return summary(ordered, seconds), ordered


def summary(solutions: list[Solution], seconds: float) -> Evaluation:
    count = len(solutions)
    usages = [solution.usage for solution in solutions]
    computed = sum(usage.computed for usage in usages)
    iterations = sum(usage.iterations for usage in usages)
    return Evaluation(
        problems=count,
        accuracy=sum(solution.is_right for solution in solutions) / count,
        answered=sum(solution.expression is not None for solution in solutions) / count,
        tokens=sum(usage.generated for usage in usages) / count,
        computed=computed / count,
        iterations=iterations / count,
        depth=iterations / computed,
        children=sum(usage.threads - 1 for usage in usages) / count,
        longest_thread=max(usage.max_context for usage in usages),
        seconds_per_problem=seconds / count,
    )
