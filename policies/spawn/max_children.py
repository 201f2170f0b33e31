"""A bound on the children of one parent."""

from __future__ import annotations

from policies.spawn.base import SpawnDecision, SpawnPolicy, SpawnRequest, TreeView
from policies.validation import check_count


class MaxChildren(SpawnPolicy, frozen=True):
    """At most `children` children of one parent run between two of its joins; further requests are refused."""

    children: int

    def __post_init__(self) -> None:
        check_count(self, "children", self.children, 0)

    def decide(self, request: SpawnRequest, tree: TreeView) -> SpawnDecision:
        if request.granted < self.children:
            return SpawnDecision(run=True)
        return SpawnDecision(run=False, reason=f"all {self.children} children of the budget were granted")
