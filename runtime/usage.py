"""What work cost: counts of one reasoning thread, of a tree, or of an engine."""

from __future__ import annotations

import msgspec

from runtime.work import Work


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Work the device reported; cancelled work counts once its report has arrived, at the latest a tick later."""

    generated: int = 0
    """Tokens sampled, kept or not."""
    computed: int = 0
    """Tokens computed: received ones, and sampled ones fed back."""
    iterations: int = 0
    """Token-iterations of the core block: the compute."""
    recomputed: int = 0
    """Of `computed`, tokens computed again after eviction."""
    prompt_tokens: int = 0
    """Received tokens that were needed: computed, again after eviction included, or taken from the cache. What a fork
    inherits is not counted."""
    cached_tokens: int = 0
    """Of `prompt_tokens`, those whose pages were shared with threads that had computed the same before, in any tree."""
    threads: int = 0
    max_context: int = 0
    """Tokens in the longest context among these threads."""
    spawns_requested: int = 0
    """Children that models asked for; those a program spawned are not among them."""
    spawns_granted: int = 0
    """Of `spawns_requested`, those that ran."""
    seconds: float = 0.0
    """Wall time from the start to the end, or to now."""

    @property
    def hit_rate(self) -> float:
        """The share of prompt tokens that came from the cache, 0 to 1; 0 where there was none."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


class Tally(Work, kw_only=True):
    """Running sums of one thread or of one subtree, which a `Usage` is a snapshot of."""

    threads: int = 0
    max_context: int = 0
    spawns_requested: int = 0
    spawns_granted: int = 0

    def usage(self, seconds: float) -> Usage:
        return Usage(**msgspec.structs.asdict(self), seconds=seconds)


def add(*usages: Usage) -> Usage:
    """The usage of several runs at the same time: counts are summed, `max_context` and `seconds` are the largest."""
    largest = ("max_context", "seconds")
    names = Usage.__struct_fields__
    columns = {name: [getattr(usage, name) for usage in usages] for name in names}
    return Usage(**{name: max(columns[name], default=0) if name in largest else sum(columns[name]) for name in names})
