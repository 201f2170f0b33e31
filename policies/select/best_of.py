"""The best of several independent samples, by a verifier."""

from __future__ import annotations

import math
from collections.abc import Sequence

from policies.select.base import SelectPolicy


class BestOf(SelectPolicy, frozen=True):
    """The answer of `samples` roots that scores highest; ties go to the earliest. Subclass it and define `score`."""

    def score(self, prompt: str, answer: str) -> float:
        """How good an answer is, higher is better; NaN counts as worst. Must not block."""
        name = type(self).__name__
        raise NotImplementedError(
            f"{name} has no verifier: make a subclass of BestOf that defines score(self, prompt, answer) -> float."
        )

    def choose(self, prompt: str, answers: Sequence[str]) -> int:
        scores = [self.score(prompt, answer) for answer in answers]
        ranked = [-math.inf if math.isnan(score) else score for score in scores]
        return max(range(len(ranked)), key=ranked.__getitem__)
