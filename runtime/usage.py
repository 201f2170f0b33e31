"""What work cost: counts of one reasoning thread, of a tree, or of an engine."""

from __future__ import annotations

import msgspec


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Work the device reported; cancelled work counts once its report has arrived, at the latest a tick later."""

    sampled: int = 0
    """Tokens sampled, kept or not."""
    computed: int = 0
    """Tokens computed: received ones, and sampled ones fed back."""
    iterations: int = 0
    """Token-iterations of the core block: the compute."""
    recomputed: int = 0
    """Of `computed`, tokens computed again after eviction."""
    reused: int = 0
    """Of `received`, tokens whose pages were shared with threads that had computed the same before, in any tree."""
    received: int = 0
    """Received tokens that were needed: computed, again after eviction included, or reused. What a fork inherits is not
    counted."""
    threads: int = 0
    longest: int = 0
    """Tokens in the longest context among these threads."""
    asked: int = 0
    """Children that models asked for; those a program spawned are not asked for."""
    granted: int = 0
    """Of `asked`, those that ran."""
    seconds: float = 0.0
    """Wall time from the start to the end, or to now."""

    @property
    def hit_rate(self) -> float:
        """The share of received tokens that were reused, 0 to 1; 0 where none was received."""
        return self.reused / self.received if self.received else 0.0


def add(*usages: Usage) -> Usage:
    """The usage of several runs at the same time: counts are summed, `longest` and `seconds` are the largest."""
    return Usage(
        sampled=sum(usage.sampled for usage in usages),
        computed=sum(usage.computed for usage in usages),
        iterations=sum(usage.iterations for usage in usages),
        recomputed=sum(usage.recomputed for usage in usages),
        reused=sum(usage.reused for usage in usages),
        received=sum(usage.received for usage in usages),
        threads=sum(usage.threads for usage in usages),
        longest=max((usage.longest for usage in usages), default=0),
        asked=sum(usage.asked for usage in usages),
        granted=sum(usage.granted for usage in usages),
        seconds=max((usage.seconds for usage in usages), default=0.0),
    )
