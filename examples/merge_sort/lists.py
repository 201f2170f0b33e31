"""The task: lists of numbers to sort, and whether an answer sorts one."""

from __future__ import annotations

import random
from collections.abc import Sequence

LARGEST = 99
"""Numbers are 0..99, each at most once in a list."""

LONGEST = 64
"""Numbers in the longest list that fits the model's context."""


def draw_list(random_source: random.Random, shortest: int, longest: int) -> list[int]:
    """Different numbers in any order, of any length in between."""
    return random_source.sample(range(LARGEST + 1), random_source.randint(shortest, longest))


def prompt_of(numbers: Sequence[int]) -> str:
    """A list as the model reads it: `31 7 88`."""
    return " ".join(map(str, numbers))


def is_sorted(numbers: Sequence[int], answer: str) -> bool:
    """Whether the answer, like `7 < 31 < 88`, has exactly the list's numbers, in order."""
    return answer == " < ".join(map(str, sorted(numbers)))
