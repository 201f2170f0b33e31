"""The tokens in flight: one lane each, as arrays that live from tick to tick."""

from __future__ import annotations

import numpy as np

from runtime.backend.interface import Bool, Entering, Int32, Int64
from runtime.link.sampling import Sampling

_ENTERING = (
    "bound",
    "until",
    "draft",
    "tests",
    "policy",
    "group",
    "row",
    "position",
    "sampling_key",
    "entropy",
    "keeps",
)
"""What lanes keep of what enters as it is."""


class Lanes:
    """Bookkeeping of every lane on the host; the latent states are the backend's. All arrays are [lanes]."""

    def __init__(self, count: int) -> None:
        self.occupied: Bool = np.zeros(count, np.bool_)
        self.age: Int32 = np.zeros(count, np.int32)
        """Ticks since the token entered; it has done min(age, bound) iterations."""
        self.bound: Int32 = np.ones(count, np.int32)
        self.until: Int32 = np.ones(count, np.int32)
        self.draft: Int32 = np.zeros(count, np.int32)
        """Iterations after which its successor is drafted; 0 for never."""
        self.tests: Bool = np.zeros(count, np.bool_)
        self.policy: Int32 = np.zeros(count, np.int32)
        self.group: Int32 = np.zeros(count, np.int32)
        self.row: Int32 = np.zeros(count, np.int32)
        self.position: Int32 = np.zeros(count, np.int32)
        self.place: Int32 = np.zeros(count, np.int32)
        """Where in its row a token is: its position, but in rows with holes."""
        self.sampling_key: Int64 = np.zeros(count, np.int64)
        self.cell: Int64 = np.zeros(count, np.int64)
        """Where in the paged cache the token is: page * page_size + offset."""
        self.entropy: Bool = np.zeros(count, np.bool_)
        self.keeps: Bool = np.zeros(count, np.bool_)
        self.is_long: Bool = np.zeros(count, np.bool_)
        """Whether LongRoPE turns it by its long factors."""
        self.target: Int32 = np.full(count, -1, np.int32)
        """The token that is scored instead of sampled; -1 for none."""
        self.sampling: list[Sampling | None] = [None] * count
        """How the token's successor is sampled; None where its logits are not wanted."""

    def enter(self, entering: Entering, samplings: tuple[Sampling, ...], cell: Int64) -> None:
        """Puts tokens into their lanes; `cell` is [n]."""
        lane = entering.lane
        self.occupied[lane] = True
        self.age[lane] = 0
        self.cell[lane] = cell
        for name in _ENTERING:
            getattr(self, name)[lane] = getattr(entering, name)
        self.place[lane] = entering.position if entering.place is None else entering.place
        self.is_long[lane] = False if entering.is_long is None else entering.is_long
        self.target[lane] = -1 if entering.target is None else entering.target
        for place, index in zip(lane.tolist(), entering.sample.tolist(), strict=True):
            self.sampling[place] = samplings[index] if index >= 0 else None

    def leave(self, lane: Int32 | Int64) -> None:
        self.occupied[lane] = False

    def in_flight(self) -> Int64:
        """Occupied lanes, ascending."""
        return np.flatnonzero(self.occupied)

    def in_groups(self, lane: Int64, groups: Int64) -> Bool:
        """Which of `lane` belong to groups named by their last lanes."""
        named = np.zeros(len(self.occupied), np.bool_)
        named[groups] = True
        return named[self.group[lane]]
