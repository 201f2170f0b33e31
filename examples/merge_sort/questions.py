"""A list to sort as a question: how it is asked, what an answer is worth, and what bounds the tree."""

from __future__ import annotations

from collections.abc import Sequence

from examples.merge_sort.lists import LONGEST, is_sorted, prompt_of
from policies import Limits
from policies.training import Question

LIMITS = Limits(threads=2 * LONGEST)
"""More than any list needs. A list that is longer than those it has seen may make the model spawn without end."""


def question_of(numbers: Sequence[int]) -> Question:
    """An answer is worth 1 if it has exactly the list's numbers in order."""
    return Question(prompt_of(numbers), lambda answer: float(is_sorted(numbers, answer.text)), limits=LIMITS)
