"""What a spawn policy is: which requested child threads run, and with what."""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from policies.conversion import convert_fields
from policies.depth.base import DepthPolicy
from policies.limits import Limits
from policies.printing import as_written
from policies.spawn.load import EngineLoad


class SpawnRequest(msgspec.Struct, frozen=True):
    """A thread asks for one child. Asked on the event loop the moment the spawn's message is complete."""

    parent: tuple[int, ...]
    """Path of the asking thread: (tree, child, grandchild, ...)."""
    message: tuple[int, ...]
    """Token ids of the message: the child's whole prompt."""
    index: int
    """How many spawns the parent asked for before this one since its last join."""
    granted: int
    """How many of those were granted."""
    entropy: float
    """Entropy in nats of the parent's distribution at the first token of the spawn; NaN where the program asked, and
    under a policy whose `reads` is not "entropy"."""


class TreeView(msgspec.Struct, frozen=True):
    """The tree as it stands when a spawn is asked for."""

    threads: int
    """Threads opened so far, the root included."""
    running: int
    """Threads of the tree that are not finished."""
    tokens: int
    """Tokens sampled so far over the tree."""
    iterations: int
    """Token-iterations computed so far over the tree."""
    waiting: int
    """Threads of the whole engine that wait for admission."""
    load: EngineLoad | None = None
    """All that the engine runs; None under a policy whose `reads` is not "load"."""


class SpawnDecision(msgspec.Struct, frozen=True):
    """Whether the child runs, and with what. None leaves what it would inherit.

    Raises `ValueError` at construction for a field of another type.
    """

    run: bool
    depth: DepthPolicy | None = None
    limits: Limits | None = None
    reason: str = ""
    """Why, for the trace; empty when the answer is plain."""

    def __post_init__(self) -> None:
        convert_fields(self, "SpawnDecision: ")


class SpawnPolicy(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of all spawn policies; a subclass registers by being defined."""

    def __repr__(self) -> str:
        return as_written(self)

    reads: ClassVar[Literal["nothing", "entropy", "load"]] = "nothing"
    """What `decide` needs besides: for "entropy" the device takes every token's logits apart, which is slow. What
    depends on the "load" is decided anew in no playback, which goes by what was recorded; such a policy says whether a
    child runs, and gives it neither depth nor limits."""

    def decide(self, request: SpawnRequest, tree: TreeView) -> SpawnDecision:
        """Answers one request; must not block."""
        return SpawnDecision(run=True)
