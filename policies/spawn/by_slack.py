"""As many children as the deadlines of what is running allow."""

from __future__ import annotations

import math

from policies.spawn.base import SpawnDecision, SpawnPolicy, SpawnRequest, TreeView
from policies.spawn.load import EngineLoad, TreeLoad
from policies.validation import check_count


class BySlack(SpawnPolicy, frozen=True):
    """A child runs as long as every tree is predicted to end in time with it, as it is without it.

    After TAPER (2026), which admits branches step by step where the slack of all requests allows. `deadline` is when a
    tree is to have ended whose `Limits.seconds` say nothing, in seconds from its beginning. Until a tree of the engine
    has ended, a tree is taken to sample `tokens` tokens; afterwards what trees did on average. `margin` is the part of
    the time that is left which is not planned with.

    What a tree has still to say is shared evenly among its threads that speak, and a token takes what the engine has
    measured for as many threads as speak everywhere. A tree that is late already does not stop the others, and gets no
    children while there are others: that it ends soon is all that it can do for them. Without measurements every child
    runs. Raises `ValueError` for a bound that is none.
    """

    deadline: float
    tokens: int = 256
    margin: float = 0.1

    reads = "load"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.deadline) and self.deadline > 0):
            raise ValueError(f"BySlack: deadline is {self.deadline}; it must be a number of seconds above 0.")
        if not 0 <= self.margin < 1:
            raise ValueError(f"BySlack: margin is {self.margin}; it must be at least 0 and below 1.")
        check_count(self, "tokens", self.tokens, 1)

    def decide(self, request: SpawnRequest, tree: TreeView) -> SpawnDecision:
        load = tree.load
        if load is None:
            return SpawnDecision(run=True)
        speaking = load.speaking
        now, then = load.seconds_per_token(speaking), load.seconds_per_token(speaking + 1)
        if now is None or then is None:
            return SpawnDecision(run=True)
        for each in load.trees:
            asks = each.tree == request.parent[0]
            left = self._seconds_left(each)
            before = self._steps(load, each, now, each.speaking) * now
            after = self._steps(load, each, now, each.speaking + asks) * then
            if asks and after > left and len(load.trees) > 1:
                return SpawnDecision(run=False, reason=f"its tree would end in {after:.3g} s and has {left:.3g} s")
            if before <= left < after:
                return SpawnDecision(
                    run=False, reason=f"tree {each.tree} would end in {after:.3g} s and has {left:.3g} s"
                )
        return SpawnDecision(run=True)

    def _seconds_left(self, tree: TreeLoad) -> float:
        deadline = self.deadline if tree.deadline is None else tree.deadline
        return (deadline - tree.seconds) * (1 - self.margin)

    def _steps(self, load: EngineLoad, tree: TreeLoad, seconds_per_token: float, speaking: int) -> float:
        """Tokens that a tree is still to say one after the other, at least one, with so many threads that speak."""
        expected = self.tokens if load.tokens_per_tree is None else load.tokens_per_tree
        # Calls that run are counted when they end; meanwhile one thread at least has spoken all the time.
        said = max(float(tree.generated), tree.seconds / seconds_per_token if seconds_per_token > 0 else 0.0)
        return max(1.0, (expected - said) / max(1, speaking))
