"""What the children of a tree were asked and what they found, by the engine's events while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from examples.countdown.problems import OPERATORS, Problem, Step, apply, expression_of, is_solution, reachable
from examples.countdown.solve import steps_in
from examples.countdown.vocabulary import QUESTION, WORDS
from runtime.link import Event, Spawned, ThreadEnded


@dataclass
class Observed:
    """Of one tree: the questions of its children and the paths they returned, as texts."""

    asked: list[str] = field(default_factory=list)
    returned: list[str] = field(default_factory=list)


class ChildrenWatch:
    """Give `observe` to `Engine.open`; `take` what was observed of a tree when its answer is there."""

    def __init__(self) -> None:
        self._observed: dict[int, Observed] = {}

    def observe(self, event: Event) -> None:
        match event:
            case Spawned(child=child, tokens=tokens) if child is not None:
                self._of(child).asked.append(" ".join(WORDS[token] for token in tokens))
            case ThreadEnded(thread=path, text=text) if len(path) > 1 and text:
                self._of(path).returned.append(text)

    def take(self, tree: int) -> Observed:
        return self._observed.pop(tree, Observed())

    def _of(self, path: tuple[int, ...]) -> Observed:
        return self._observed.setdefault(path[0], Observed())


def is_asked(problem: Problem, observed: Observed) -> bool:
    """Whether some child was asked a question that follows from the problem and has a solution under the cap."""
    return any(_has_solution(problem, text) for text in observed.asked)


def is_found(problem: Problem, observed: Observed) -> bool:
    """Whether some child returned a path that solves the problem."""
    expressions = (expression_of(steps_in(text) or [], problem.nums) for text in observed.returned)
    return any(expression is not None and is_solution(problem, expression) for expression in expressions)


def _has_solution(problem: Problem, text: str) -> bool:
    """`53 - 31 22 Q 27 26 22 22`: steps whose arithmetic is right, the target, and the numbers they leave."""
    before, _, question = text.partition(f" {QUESTION} ")
    words = question.split()
    if len(words) < 2 or not all(word.isdigit() for word in words) or int(words[0]) != problem.target:
        return False
    steps = steps_in(before) or []
    numbers = _after(steps, problem.nums)
    rest = tuple(sorted(map(int, words[1:]), reverse=True))
    return bool(steps) and numbers == rest and problem.target in reachable(rest, {})


def _after(steps: list[Step], nums: tuple[int, ...]) -> tuple[int, ...] | None:
    """The numbers that right steps leave, sorted descending; None if a step is wrong or not possible."""
    numbers = list(nums)
    for step in steps:
        for operand in (step.left, step.right):
            if operand not in numbers:
                return None
            numbers.remove(operand)
        if step.operator not in OPERATORS or apply(step.operator, step.left, step.right) != step.result:
            return None
        numbers.append(step.result)
    return tuple(sorted(numbers, reverse=True))
