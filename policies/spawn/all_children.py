"""Run what the thread asks for."""

from __future__ import annotations

from policies.spawn.base import SpawnDecision, SpawnPolicy, SpawnRequest, TreeView
from policies.validation import check_count


class AllChildren(SpawnPolicy, frozen=True):
    """Every child that a thread asks for runs, within the tree's limits.

    A model's own mistakes may ask for children of children without end. `tree_depth` is how many levels below the root
    there may be (0: no children); None is no bound.
    """

    tree_depth: int | None = None

    def __post_init__(self) -> None:
        if self.tree_depth is not None:
            check_count(self, "tree_depth", self.tree_depth, 0)

    def decide(self, request: SpawnRequest, tree: TreeView) -> SpawnDecision:
        if self.tree_depth is None or len(request.parent) <= self.tree_depth:
            return SpawnDecision(run=True)
        return SpawnDecision(run=False, reason=f"children run on {self.tree_depth} levels below the root")
