"""What a thread, with everything below it, may spend."""

from __future__ import annotations

import msgspec

from policies.conversion import Exact, convert_fields


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Upper bounds; None is no bound. A child inherits its parent's and is carved from them: what it spends counts.

    `threads` counts every thread below and including this one; `tree_depth` the levels below it (0: no children), which
    are bounded unless None is given, because a model may spawn children of children without end; `seconds` is wall time
    from the thread's start; `tool_calls` is how many times tools may be called. Raises `ValueError` at construction for
    a bound that is negative, or no number of its kind.
    """

    tokens: Exact | None = None
    iterations: Exact | None = None
    threads: Exact | None = None
    tree_depth: Exact | None = 1000
    seconds: float | None = None
    tool_calls: Exact | None = None

    def __post_init__(self) -> None:
        convert_fields(self, "Limits: ")
        for name in self.__struct_fields__:
            bound = getattr(self, name)
            if bound is not None and not bound >= 0:
                raise ValueError(f"Limits: {name} is {bound!r}; give a number of at least 0, or None for no bound.")
