"""The work that computing tokens is: six counts, added up wherever somebody counts."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Total = Annotated[int, Meta(ge=0, lt=2**53)]
"""A count that every format holds exactly; what is more is refused where it is read."""


class Work(msgspec.Struct, kw_only=True, array_like=True):
    """Running counts of a generate, a thread, a subtree or an engine. Mutable: its holder adds to it."""

    generated: Total = 0
    """Tokens sampled, kept or not."""
    computed: Total = 0
    """Tokens computed: received ones, and sampled ones fed back, recomputation after eviction included."""
    iterations: Total = 0
    """Token-iterations of the core block: the compute."""
    recomputed: Total = 0
    """Of `computed`, tokens computed again because their pages had been evicted."""
    prompt_tokens: Total = 0
    """Received tokens that were needed: computed, again included, or taken from the cache."""
    cached_tokens: Total = 0
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
