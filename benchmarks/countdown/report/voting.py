"""What n samples of one problem are worth: pass@n and cons@n, averaged over all choices of n among those drawn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from benchmarks.countdown.report.cells import Record


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
