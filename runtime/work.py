"""The work that computing tokens is: six counts, added up wherever somebody counts."""

from __future__ import annotations

import msgspec


class Work(msgspec.Struct, kw_only=True):
    """Running counts of a generate, a thread, a subtree or an engine. Mutable: its holder adds to it."""

    generated: int = 0
    """Tokens sampled, kept or not."""
    computed: int = 0
    """Tokens computed: received ones, and sampled ones fed back, recomputation after eviction included."""
    iterations: int = 0
    """Token-iterations of the core block: the compute."""
    recomputed: int = 0
    """Of `computed`, tokens computed again because their pages had been evicted."""
    prompt_tokens: int = 0
    """Received tokens that were needed: computed, again included, or taken from the cache."""
    cached_tokens: int = 0
    """Of `prompt_tokens`, those whose pages were shared instead of computed."""

    def add(self, other: Work) -> None:
        """Counts another's work too."""
        self.generated += other.generated
        self.computed += other.computed
        self.iterations += other.iterations
        self.recomputed += other.recomputed
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens

    def copy(self) -> Work:
        """The counts as they are; later additions do not change them."""
        copied = Work()
        copied.add(self)
        return copied
