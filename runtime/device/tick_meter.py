"""What ticks cost, measured while they run: a line through seconds over tokens in flight."""

from __future__ import annotations

from policies import TickCosts

_KEPT = 0.995
"""What of earlier calls counts still after one more: the last few hundred say what a tick takes now."""
_LEAST = 16
"""Ticks before which nothing is said."""


class TickMeter:
    """Weighted least squares over the calls of the backend. Used on the device thread alone."""

    def __init__(self) -> None:
        self._ticks = 0
        self._weight = self._lanes = self._seconds = self._squares = self._products = 0.0

    def add(self, ticks: int, iterations: int, seconds: float) -> None:
        """One call: its ticks, their token-iterations, and the seconds that all took."""
        if ticks < 1 or iterations < 1:
            return
        lanes, each = iterations / ticks, seconds / ticks
        self._ticks += ticks
        self._weight = self._weight * _KEPT + ticks
        self._lanes = self._lanes * _KEPT + ticks * lanes
        self._seconds = self._seconds * _KEPT + seconds
        self._squares = self._squares * _KEPT + ticks * lanes * lanes
        self._products = self._products * _KEPT + ticks * lanes * each

    @property
    def costs(self) -> TickCosts | None:
        """None before some ticks. Where all had as many tokens in flight, what they took is said to be the tokens',
        and a line that falls, or begins below 0, is the nearest one that does neither."""
        if self._ticks < _LEAST:
            return None
        lanes, seconds = self._lanes / self._weight, self._seconds / self._weight
        spread = self._squares / self._weight - lanes * lanes
        through_zero = TickCosts(0.0, self._products / self._squares)
        if spread <= 1e-6 * lanes * lanes:
            return through_zero
        slope = (self._products / self._weight - lanes * seconds) / spread
        if slope <= 0:
            return TickCosts(seconds, 0.0)
        return TickCosts(seconds - slope * lanes, slope) if slope * lanes <= seconds else through_zero
