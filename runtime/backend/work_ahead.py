"""What ticks to come have to do, added up from when tokens enter and leave."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from runtime.backend.interface import Int64


class TickWork(NamedTuple):
    """What ticks did; arrays [ticks]."""

    in_flight: Int64
    """Tokens in the core iteration."""
    entered: Int64
    """Tokens whose prelude was run, those that lanes went on with by themselves included."""
    left: Int64
    """Tokens that left."""
    keys: Int64
    """Keys that all queries of a layer read: of each token in flight its position + 1."""


class WorkAhead:
    """Sums by tick, from the present one on. Ticks are absolute numbers."""

    def __init__(self) -> None:
        self._first = 0
        """The tick that column 0 is of."""
        self._sums: Int64 = np.zeros((4, 1024), np.int64)
        """Changes of tokens in flight and of keys, then tokens that enter and that leave."""
        self._now: Int64 = np.zeros(2, np.int64)
        """Tokens in flight, and keys, before the present tick's changes."""

    def go_to(self, tick: int) -> None:
        """Makes this the present tick; what came before is done."""
        done = tick - self._first
        if done:
            self._now += self._sums[:2, :done].sum(axis=1)
            kept = self._sums.shape[1] - done
            if kept <= 0:
                self._sums[:] = 0
            else:
                self._sums[:, :kept] = self._sums[:, done:].copy()
                self._sums[:, kept:] = 0
            self._first = tick

    def reserve(self, end: int) -> None:
        """Makes room for what happens up to tick `end`."""
        width = self._sums.shape[1]
        needed = end - self._first + 1
        if needed > width:
            more = np.zeros((4, max(needed, 2 * width)), np.int64)
            more[:, :width] = self._sums
            self._sums = more

    def enters(self, tick: int, count: int) -> None:
        self._sums[2, tick - self._first] += count

    def computes(self, start: int, end: int, count: int, keys: int) -> None:
        """So many tokens more, and keys, in ticks `start` to `end`."""
        first, last = start - self._first, end - self._first
        self._sums[0, first] += count
        self._sums[0, last] -= count
        self._sums[1, first] += keys
        self._sums[1, last] -= keys

    def goes_on(self, ends: Int64, count: int) -> None:
        """A lane's tokens leave before these ticks, ascending, and each but the last gives way to the next, which reads
        a key more."""
        at = ends - self._first
        self._sums[3, at - 1] += count
        self._sums[2, at[:-1]] += count
        self._sums[1, at[:-1]] += count
        self._sums[1, at[-1]] -= count * (len(ends) - 1)

    def leaves(self, tick: int, count: int) -> None:
        """So many leave before a tick."""
        self._sums[3, tick - 1 - self._first] += count

    def take(self, ticks: int) -> TickWork:
        """What the next ticks do."""
        self.reserve(self._first + ticks)
        in_flight, keys = self._now[:, None] + np.cumsum(self._sums[:2, :ticks], axis=1)
        return TickWork(in_flight, self._sums[2, :ticks].copy(), self._sums[3, :ticks].copy(), keys)
