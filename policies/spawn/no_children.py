"""Serial reasoning: no child runs."""

from __future__ import annotations

from policies.spawn.base import SpawnDecision, SpawnPolicy, SpawnRequest, TreeView


class NoChildren(SpawnPolicy, frozen=True):
    """Every request is refused; the thread goes on alone."""

    def decide(self, request: SpawnRequest, tree: TreeView) -> SpawnDecision:
        return SpawnDecision(run=False, reason="no children are allowed")
