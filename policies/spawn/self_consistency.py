"""Majority vote over independent samples (cons@n, arXiv 2203.11171)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from policies.spawn.sampled import Sampled


class SelfConsistency(Sampled, frozen=True):
    """The answer that most of `n` roots give, compared without surrounding whitespace; ties go to the earliest.

    Empty answers have no vote unless all are empty.
    """

    def choose(self, prompt: str, answers: Sequence[str]) -> int:
        stripped = [answer.strip() for answer in answers]
        votes = Counter(answer for answer in stripped if answer)
        if not votes:
            return 0
        # most_common keeps the order of first appearance among equals.
        return stripped.index(votes.most_common(1)[0][0])
