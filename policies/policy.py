"""What an engine is told about how much to think: depth and children together."""

from __future__ import annotations

import msgspec

from policies.depth.base import DepthPolicy
from policies.depth.fixed import Fixed
from policies.printing import as_written
from policies.select.base import SelectPolicy
from policies.spawn.all_children import AllChildren
from policies.spawn.base import SpawnPolicy
from policies.validation import check_policy


class Policy(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """How deep tokens go, which children run, and how the answer is chosen; the defaults leave it to the model.

    Raises `ValueError` at construction if a field holds something else.
    """

    depth: DepthPolicy = Fixed()
    spawn: SpawnPolicy = AllChildren()
    select: SelectPolicy | None = None
    """None: one root answers."""

    def __post_init__(self) -> None:
        check_policy(self, "depth", self.depth, DepthPolicy)
        check_policy(self, "spawn", self.spawn, SpawnPolicy)
        if self.select is not None:
            check_policy(self, "select", self.select, SelectPolicy)

    def __repr__(self) -> str:
        return as_written(self)
