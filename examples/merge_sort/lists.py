"""The task: lists of letters to sort, and whether an answer sorts one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from string import ascii_lowercase

LETTERS = tuple(ascii_lowercase)

MOST_LABELS = 64
"""Letters in the longest list that the language can write."""


def draw_list(random_source: random.Random, shortest: int, longest: int) -> list[str]:
    """A list of letters of any length in between; one in three is from a few letters only, so full of duplicates."""
    letters = random_source.sample(LETTERS, random_source.randint(2, 8)) if random_source.random() < 1 / 3 else LETTERS
    return random_source.choices(letters, k=random_source.randint(shortest, longest))


def prompt_of(letters: Sequence[str]) -> str:
    """A list as the model reads it: `1 q 2 w 3 e`. The labels tell equal letters apart."""
    return " ".join(f"{label} {letter}" for label, letter in enumerate(letters, 1))


def letters_in(answer: str) -> list[str]:
    """The letters of an answer like `3 e , 1 q , 2 w ,`, without labels."""
    return answer.split()[1::3]


def is_sorted(letters: Sequence[str], answer: str) -> bool:
    """Whether the answer has exactly the list's letters, duplicates included, in order."""
    return letters_in(answer) == sorted(letters)
