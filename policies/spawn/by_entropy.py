"""Children where the parent is unsure."""

from __future__ import annotations

import math

from policies.spawn.base import SpawnDecision, SpawnPolicy, SpawnRequest, TreeView
from policies.validation import check_count, check_threshold


class ByEntropy(SpawnPolicy, frozen=True):
    """A child runs only where the parent's entropy at the spawn, in nats, is at least `threshold`.

    Spawns by the program, which have no entropy, run. `max_children` also bounds the children between two joins.
    """

    threshold: float
    max_children: int | None = None

    reads = "entropy"

    def __post_init__(self) -> None:
        check_threshold(self, self.threshold)
        if self.max_children is not None:
            check_count(self, "max_children", self.max_children, 0)

    def decide(self, request: SpawnRequest, tree: TreeView) -> SpawnDecision:
        if self.max_children is not None and request.granted >= self.max_children:
            return SpawnDecision(run=False, reason=f"all {self.max_children} children of the budget were granted")
        if math.isnan(request.entropy) or request.entropy >= self.threshold:
            return SpawnDecision(run=True)
        return SpawnDecision(run=False, reason=f"entropy {request.entropy:.3g} is below {self.threshold:.3g}")
