"""Fewer iterations when many threads wait."""

from __future__ import annotations

import numpy as np

from policies.depth.base import EntryView, IntArray
from policies.depth.bounding import Bounding
from policies.validation import check_count, check_number


class ByLoad(Bounding, frozen=True, kw_only=True):
    """Lowers the criterion's bound linearly, down to `least`, while the load rises from `calm` to `busy`.

    Load is (tokens in flight + threads waiting) / lanes: 1 is a full device with nobody waiting. The bound, and with
    it what a thread says, depends on what else runs: schedules differ, so runs do not repeat. A trace still plays back.
    """

    calm: float = 1.0
    """Load up to which the criterion's bound holds."""
    busy: float = 4.0
    """Load from which tokens are bounded by `least`."""
    least: int = 1
    """Smallest bound; the criterion's where that is lower."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self, "least", self.least, 1)
        advice = "0 <= calm < busy, both finite"
        check_number(self, "calm", self.calm, 0, advice=advice)
        check_number(self, "busy", self.busy, 0, advice=advice)
        if not self.calm < self.busy:
            raise ValueError(f"ByLoad: calm is {self.calm} and busy is {self.busy}; give {advice}.")

    def bound(self, entering: EntryView) -> IntArray:
        load = (entering.in_flight + entering.waiting) / entering.lanes
        pressure = min(max((load - self.calm) / (self.busy - self.calm), 0.0), 1.0)
        most = self.criterion.bound(entering)
        least = np.minimum(self.least, most)
        # Rounded up, so that a bound falls only as far as the load asks.
        return np.ceil(most - pressure * (most - least)).astype(np.int32)
