"""Sequences of like length together, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

LENGTH_STEP = 16
"""What lengths are rounded up to where passes are compiled, so that few shapes occur."""


def by_length(
    sequences: Iterable[T], length_of: Callable[[T], int], tokens_per_batch: int, length_step: int = 1
) -> Iterator[list[T]]:
    """Batches of at most `tokens_per_batch` tokens, padding to a multiple of `length_step` included, shortest first.

    Sequences of one length keep their order. One that is longer than that by itself makes a batch of its own.
    """
    batch: list[T] = []
    for sequence in sorted(sequences, key=length_of):
        if batch and rounded(length_of(sequence), length_step) * (len(batch) + 1) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(sequence)
    if batch:
        yield batch


def rounded(length: int, step: int) -> int:
    """`length`, or the next multiple of `step` above it."""
    return -(-length // step) * step
