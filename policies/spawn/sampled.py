"""Base of policies that answer a prompt by several independent root threads."""

from __future__ import annotations

from policies.spawn.as_asked import AsAsked
from policies.spawn.base import SpawnDecision, SpawnPolicy, SpawnRequest, TreeView
from policies.validation import check_count, check_policy


class Sampled(SpawnPolicy, frozen=True):
    """`n` independent roots; `each` decides about the children of all of them. The first answer is taken.

    Roots differ only by their randomness, so a temperature above 0 is needed for answers that differ.
    """

    n: int
    each: SpawnPolicy = AsAsked()

    def __post_init__(self) -> None:
        check_count(self, "n", self.n, 1)
        check_policy(self, "each", self.each, SpawnPolicy)
        if self.each.samples != 1:
            raise ValueError(
                f"{type(self).__name__}: each is {type(self.each).__name__}, which samples several roots itself; "
                "give a policy about children, such as ChildBudget."
            )

    @property
    def samples(self) -> int:
        return self.n

    @property
    def reads_entropy(self) -> bool:
        return self.each.reads_entropy

    def decide(self, request: SpawnRequest, tree: TreeView) -> SpawnDecision:
        return self.each.decide(request, tree)
