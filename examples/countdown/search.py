"""The symbolic search that demonstrations write down, and which first operations it tries when it cannot try all.

The serial and the parallel solver share all of it, so that a comparison of the two compares nothing else.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

from examples.countdown.problems import Step, steps
from examples.countdown.vocabulary import QUESTION, WIN

Numbers = tuple[int, ...]
"""Sorted descending."""

Branch = tuple[Step, Numbers]
"""A first operation and the numbers left after it."""

ORDER_NOISE = 0.3
"""Standard deviation of the logarithm of the noise on `promise`: equal questions are searched in several orders."""


def words_of(path: Iterable[Step]) -> list[str]:
    return [str(word) for step in path for word in (step.left, step.operator, step.right, step.result)]


def question_words(target: int, numbers: Numbers) -> list[str]:
    return [QUESTION, str(target), *map(str, numbers)]


def without(numbers: Numbers, i: int, j: int) -> Numbers:
    return numbers[:i] + numbers[i + 1 : j] + numbers[j + 1 :]


def first_steps(numbers: Numbers) -> list[Branch]:
    """Every allowed operation on two of `numbers`, with the numbers left after it."""
    return [
        (step, tuple(sorted((*without(numbers, i, j), step.result), reverse=True)))
        for i in range(len(numbers))
        for j in range(i + 1, len(numbers))
        for step in steps(numbers[i], numbers[j])
    ]


def promise(target: int, numbers: Numbers) -> int:
    """The sum heuristic of Stream of Search (arXiv 2404.03683): how far numbers are from the target; less is better."""
    return sum(abs(number - target) for number in numbers)


def ranked(branches: list[Branch], target: int, random_source: random.Random) -> list[Branch]:
    """The branches, most promising first, as somebody ranks them who sees the promise through noise."""
    return sorted(
        branches,
        key=lambda branch: math.log1p(promise(target, branch[1])) + random_source.gauss(0.0, ORDER_NOISE),
    )


def in_order(chosen: list[Branch], branches: list[Branch]) -> list[Branch]:
    """Those of `branches` that were chosen. Searches go through them in this order, so that none comes twice."""
    places = dict(enumerate(branches))
    kept = sorted(_place(branch, places) for branch in chosen)
    return [branches[position] for position in kept]


def _place(branch: Branch, places: dict[int, Branch]) -> int:
    """Takes the first place that still has an equal branch: equal numbers make equal branches."""
    position = next(position for position, other in places.items() if other == branch)
    del places[position]
    return position


def search_three(before: list[Step], target: int, numbers: Numbers) -> tuple[list[str], list[Step] | None]:
    """What a search of three numbers writes, and the path it ends with, if it finds one.

    Every operation on two of them with its result and the number left over; below it every operation on those two:
    its symbol, its value, its distance to the target. At distance 0 it writes the whole path, after `before`.
    """
    written: list[str] = []
    for i, j, k in ((0, 1, 2), (0, 2, 1), (1, 2, 0)):
        for step in steps(numbers[i], numbers[j]):
            written += [*words_of([step]), str(numbers[k])]
            for leaf in steps(step.result, numbers[k]):
                distance = abs(leaf.result - target)
                written += [leaf.operator, str(leaf.result), str(distance)]
                if distance == 0:
                    path = [*before, step, leaf]
                    return [*written, WIN, *words_of(path)], path
    return written, None
