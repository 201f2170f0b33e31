"""Majority vote over independent samples (cons@n, arXiv 2203.11171)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from policies.select.base import SelectPolicy


class SelfConsistency(SelectPolicy, frozen=True):
    """The answer that most of `samples` roots give, compared without surrounding whitespace; ties go to the earliest.

    Empty answers have no vote unless all are empty.
    """

    def choose(self, prompt: str, answers: Sequence[str]) -> int:
        stripped = [answer.strip() for answer in answers]
        votes = Counter(answer for answer in stripped if answer)
        if not votes:
            return 0
        # most_common keeps the order of first appearance among equals.
        return stripped.index(votes.most_common(1)[0][0])
