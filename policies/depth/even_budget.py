"""Spend a thread's iterations evenly over the tokens it has still to compute."""

from __future__ import annotations

import numpy as np

from policies.depth.base import EntryView, IntArray
from policies.depth.bounding import Bounding


class EvenBudget(Bounding, frozen=True):
    """Bounds each token by iterations_left // tokens_left, at least 1, at most what `criterion` allows.

    What earlier tokens did not use is shared among the later ones. Without an iteration limit the bound is the
    criterion's. A limit with less than one iteration a token is not stretched: the thread ends when it is reached.
    """

    def bound(self, entering: EntryView) -> IntArray:
        share = np.maximum(entering.iterations_left, 0) // np.maximum(entering.tokens_left, 1)
        bound: IntArray = np.clip(share, 1, self.criterion.bound(entering)).astype(np.int32)
        return bound
