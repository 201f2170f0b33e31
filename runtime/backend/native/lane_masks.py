"""Masks of constrained lanes, where native code looks for them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from runtime.backend.interface import Int64
from runtime.backend.lanes import Lanes
from runtime.backend.native.tick_buffers import TickBuffers
from runtime.link.constraints import TokenMask


class LaneMasks:
    """Copies masks into an array that is made for the first of them."""

    def __init__(self, buffers: TickBuffers, record: NDArray[np.void], lanes: Lanes) -> None:
        self._own = buffers.lanes
        self._words = buffers.sizes.mask_words
        self._record = record
        self._lanes = lanes
        self._allowed = buffers.lanes.allowed

    def await_due(self, masks: Mapping[int, TokenMask], flight: Int64) -> bool:
        """Shows the masks of lanes in flight, waiting for those that may be needed in the next tick; whether another
        one is missing."""
        own, lanes, is_missing = self._own, self._lanes, False
        for lane in flight.tolist():
            if (mask := masks.get(lane)) is None or own.is_masked[lane]:
                continue
            leaves = lanes.age[lane] + 1 >= lanes.until[lane]
            if leaves or (lanes.tests[lane] and own.criterion[lane] > 0) or mask.is_ready():
                self.show(lane, mask)
            else:
                is_missing = True
        return is_missing

    def show(self, lane: int, mask: TokenMask) -> None:
        """Shows a lane's mask, waiting for it."""
        if self._own.is_masked[lane]:
            return
        if not len(self._allowed):
            self._allowed = np.zeros((len(self._own.is_masked), self._words), np.int32)
            # Only the leading thread reads it, between whose calls this is.
            self._record["allowed"] = self._allowed.ctypes.data
        self._allowed[lane] = mask.wait()[: self._words].view(np.int32)
        self._own.is_masked[lane] = True
