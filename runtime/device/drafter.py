"""Another model that guesses what threads say next, or says it: what it is asked, and what it answers."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as SequenceOf
from typing import Protocol

from msgspec import Struct

from runtime.device.active_generate import Drawn
from runtime.link.commands import ThreadPath
from runtime.link.sampling import Sampling


class DraftRequest(Struct, frozen=True, kw_only=True):
    """A thread that wants its next tokens guessed."""

    path: ThreadPath
    seed: int
    tokens: array[int]
    """Its context."""
    count: int
    """Tokens wanted, at least 1."""
    sampling: Sampling


class Drafter(Protocol):
    """Another model that guesses tokens, on the device thread."""

    def draft(self, requests: SequenceOf[DraftRequest]) -> list[tuple[int, ...]]:
        """Guesses for each thread, in order; fewer than wanted, or none, where it can do no more."""
        ...

    def say(self, requests: SequenceOf[DraftRequest]) -> list[Drawn | None]:
        """The next token of each thread, in order, of depth 0 and with its entropy; None where it can do no more."""
        ...

    def forget(self, path: ThreadPath) -> None:
        """A thread was closed."""
        ...

    def close(self) -> None:
        """Nothing is asked any more."""
        ...
