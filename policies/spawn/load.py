"""How loaded an engine is, as a spawn policy sees it: its trees, and what a tick costs."""

from __future__ import annotations

import msgspec


class TickCosts(msgspec.Struct, frozen=True):
    """What a tick takes, as an engine has measured it: so many seconds, and so many more for each token in flight."""

    tick_seconds: float
    lane_seconds: float

    def seconds(self, lanes: float) -> float:
        """Of a tick with so many tokens in flight."""
        return self.tick_seconds + self.lane_seconds * lanes


class TreeLoad(msgspec.Struct, frozen=True, kw_only=True):
    """One tree that is running."""

    tree: int
    """Number of its root."""
    seconds: float
    """Since it began."""
    deadline: float | None
    """Seconds from its beginning by which its limits end it; None without."""
    generated: int
    """Tokens of its calls that have ended."""
    speaking: int
    """Its threads that generate or are about to; parked ones do not count."""


class EngineLoad(msgspec.Struct, frozen=True, kw_only=True):
    """All that an engine runs when a spawn is asked for."""

    trees: tuple[TreeLoad, ...]
    costs: TickCosts | None
    """None until some ticks were measured, and of devices that measure none, as servers are."""
    lanes: int | None
    """Most tokens in flight; None where nobody knows."""
    iterations: float
    """Ticks that a token takes, on average so far; at least 1."""
    tokens_per_tree: float | None
    """Tokens that trees had sampled when they ended, on average; None before the first."""

    @property
    def speaking(self) -> int:
        """Threads of all trees that generate or are about to."""
        return sum(tree.speaking for tree in self.trees)

    def seconds_per_token(self, speaking: int) -> float | None:
        """What a thread's next token takes where so many threads speak, taking turns where lanes are fewer; None
        without measured costs."""
        if self.costs is None:
            return None
        lanes = speaking if self.lanes is None else min(speaking, self.lanes)
        return self.iterations * self.costs.seconds(lanes) * speaking / max(1, lanes)
