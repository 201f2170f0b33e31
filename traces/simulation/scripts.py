"""What a recorded thread does, step by step, without times: what a simulation plays again."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from runtime import Said
from runtime.link import ThreadPath

Int32 = NDArray[np.int32]


class Receive(msgspec.Struct, frozen=True):
    """Tokens are appended to its context."""

    tokens: tuple[int, ...]


class Say(msgspec.Struct, frozen=True, kw_only=True):
    """A generate."""

    said: Said
    sampling: Any
    """As builtins, as is `depth`."""
    depth: Any
    scores: tuple[int, ...] = ()
    fills: bool = False
    spawns: tuple[tuple[int, ThreadPath], ...] = ()
    """How many tokens were said, ascending, when the model had asked for a child, and for which."""


class Start(msgspec.Struct, frozen=True):
    """A program lets a child begin."""

    child: ThreadPath


class Await(msgspec.Struct, frozen=True):
    """It goes on when these have ended; others are then cancelled."""

    ended: tuple[ThreadPath, ...]
    cancelled: tuple[ThreadPath, ...]


class TakeOver(msgspec.Struct, frozen=True):
    """The keys and values of children are merged into its context."""

    children: tuple[ThreadPath, ...]


class Cut(msgspec.Struct, frozen=True):
    """What its last generate said is forgotten but for the first `keep` tokens."""

    keep: int


Step = Receive | Say | Start | Await | TakeOver | Cut


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """All that one thread does."""

    path: ThreadPath
    inherits: ThreadPath | None
    seed: int
    depth: Any
    """Its policy, as builtins."""
    steps: tuple[Step, ...]

    @property
    def tokens(self) -> int:
        """That it says."""
        return sum(len(step.said.tokens) for step in self.steps if isinstance(step, Say))


class ScriptedTree(msgspec.Struct, frozen=True, kw_only=True):
    """A root thread and all below it."""

    root: ThreadPath
    scripts: dict[ThreadPath, Script]

    @property
    def taken_over(self) -> frozenset[ThreadPath]:
        """Threads whose context another takes over, so that they stay open until then."""
        steps = (step for script in self.scripts.values() for step in script.steps)
        return frozenset(child for step in steps if isinstance(step, TakeOver) for child in step.children)

    @property
    def tokens(self) -> int:
        """That its threads say."""
        return sum(script.tokens for script in self.scripts.values())
