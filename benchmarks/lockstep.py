"""Batching as other engines do it: tokens enter only when none is in flight, so that all wait for the deepest."""

from __future__ import annotations

from runtime.device.scheduler import Scheduler
from runtime.device.sequence import Flight


class LockstepScheduler(Scheduler):
    """Plans nothing while tokens are in flight, and lets no lane go on by itself."""

    def plan(self) -> list[Flight]:
        return [] if len(self.in_flight) else super().plan()

    @property
    def is_stepwise(self) -> bool:
        return True
