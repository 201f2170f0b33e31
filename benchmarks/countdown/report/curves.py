"""What configurations that cost differently solve: samples of one problem by vote, Pareto curves, and the gap between
two curves at equal cost.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise
from typing import NamedTuple

from benchmarks.countdown.report.cells import Record


class Spent(NamedTuple):
    """A configuration: what it costs, what share of problems it solves, and what it is called."""

    cost: float
    accuracy: float
    name: str = ""


class Gap(NamedTuple):
    """How much more `ours` solves than what the other side solves at the same cost."""

    gain: float
    ours: Spent
    theirs: float
    """The other side's accuracy there."""


def pareto(points: Iterable[Spent]) -> list[Spent]:
    """Those that nothing cheaper or equally cheap equals or beats, cheapest first."""
    front: list[Spent] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def best_within(points: Iterable[Spent], budget: float) -> Spent | None:
    """The most accurate one that costs no more than the budget, the cheapest of equals; None if all cost more."""
    affordable = [point for point in points if point.cost <= budget]
    return max(affordable, key=lambda point: (point.accuracy, -point.cost), default=None)


def accuracy_at(curve: Sequence[Spent], cost: float) -> float | None:
    """The best that a side can do at a cost: between two points of its Pareto curve by mixing them (some problems this
    way, the others that way), beyond its dearest point what that point gives; None below its cheapest."""
    front = pareto(curve)
    if not front or cost < front[0].cost:
        return None
    for before, after in pairwise(front):
        if cost < after.cost:
            share = (cost - before.cost) / (after.cost - before.cost)
            return before.accuracy + share * (after.accuracy - before.accuracy)
    return front[-1].accuracy


def largest_gap(ours: Sequence[Spent], theirs: Sequence[Spent], most: float | None = None) -> Gap | None:
    """Where one side is furthest ahead of the other at equal cost, over our points that the other side can afford.

    Points above the cost `most` are left out. None where no point can be compared.
    """
    gaps = []
    for point in ours:
        other = accuracy_at(theirs, point.cost)
        if other is not None and (most is None or point.cost <= most):
            gaps.append(Gap(point.accuracy - other, point, other))
    return max(gaps, key=lambda gap: gap.gain, default=None)


def largest_saving(ours: Sequence[Spent], theirs: Sequence[Spent]) -> tuple[float, Spent, Spent] | None:
    """The largest share of cost that we save at no less accuracy than a point of theirs, with both points."""
    savings = []
    for point in theirs:
        equal = [mine for mine in ours if mine.accuracy >= point.accuracy]
        cheapest = min(equal, key=lambda mine: mine.cost, default=None)
        if cheapest is not None and point.accuracy > 0:
            savings.append((1 - cheapest.cost / point.cost, cheapest, point))
    return max(savings, key=lambda saving: saving[0], default=None)


def pass_at(samples: Sequence[Record], n: int) -> float:
    """The chance that at least one of n of the samples is right. Raises `ValueError` for n beyond the samples."""
    _check(samples, n)
    wrong = sum(not sample.is_right for sample in samples)
    return 1 - math.comb(wrong, n) / math.comb(len(samples), n)


def consensus_at(samples: Sequence[Record], n: int) -> float:
    """The chance that the most frequent answer of n of the samples is right.

    Samples without an answer do not vote; equally frequent answers are chosen among by lot. Raises `ValueError` for n
    beyond the samples.
    """
    _check(samples, n)
    chances = [_vote(chosen) for chosen in combinations(samples, n)]
    return sum(chances) / len(chances)


def _vote(samples: Sequence[Record]) -> float:
    votes = Counter(sample.answer for sample in samples if sample.answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    right = {sample.answer for sample in samples if sample.is_right}
    leading = [answer for answer, count in votes.items() if count == most]
    return sum(answer in right for answer in leading) / len(leading)


def _check(samples: Sequence[Record], n: int) -> None:
    if not 1 <= n <= len(samples):
        raise ValueError(f"n is {n}; {len(samples)} samples were drawn, so it must be from 1 to {len(samples)}.")
