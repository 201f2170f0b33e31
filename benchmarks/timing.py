"""Timing two or more ways of doing the same work, in turn, so that all see the same machine."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping

Side = Callable[[], float]
"""Does the work once and returns the seconds that it took, without what it had to prepare."""


def in_turn(sides: Mapping[str, Side], rounds: int) -> dict[str, list[float]]:
    """Seconds of every side in every round, after one untimed round of all.

    Every other round goes through the sides in reverse. Garbage is collected before each.
    """
    for side in sides.values():
        side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        names = list(sides)
        for name in names if number % 2 == 0 else reversed(names):
            gc.collect()
            seconds[name].append(sides[name]())
    return seconds


def ratios(above: list[float], below: list[float]) -> list[float]:
    """Quotients of two sides' seconds, round by round."""
    return [one / other for one, other in zip(above, below, strict=True)]
