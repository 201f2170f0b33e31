"""What the solvers themselves reach on a set of problems, without a model's mistakes."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from benchmarks.countdown.report.cells import WINDOWS
from benchmarks.countdown.serial import SerialSearch
from examples.countdown.problems import Problem, reachable

ORDERS = 3
"""The serial solver ranks operations through noise; its success is a mean over so many orders."""


class Oracle(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of the problems, 0 to 1."""

    solvable: tuple[bool, ...]
    """For each problem, whether it has a solution without a result above the cap."""
    serial: dict[int, float]
    """By window: how many the serial solver's own trace, of as much as fits into it, solves."""

    @property
    def ceiling(self) -> float:
        return sum(self.solvable) / len(self.solvable)


def consult(problems: Sequence[Problem]) -> Oracle:
    searches = [
        SerialSearch(problem, random.Random(f"{number} {order}"))
        for number, problem in enumerate(problems)
        for order in range(ORDERS)
    ]
    return Oracle(
        solvable=tuple(problem.target in reachable(problem.key[0], {}) for problem in problems),
        serial={
            window: sum(search.thread(window).path is not None for search in searches) / len(searches)
            for window in WINDOWS
        },
    )
