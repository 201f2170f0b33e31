"""One replica as the router sees it: what is open there, what it is busy with, and what it is about to be sent."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from runtime.link.columns import Numbers
from runtime.link.commands import Command, Report, Request, Statistics
from runtime.link.notes import Notes

_MOST_STRETCHES = 1024
"""Stretches of ticks that are remembered; tokens are told of soon after their tick."""

Word = Notes | list[Report] | str
"""What a replica says: what it noted for the trace, then the reports of that, in turns; or, where a recording begins,
the fingerprint of its weights."""


class Replica(Protocol):
    """A device elsewhere. What it says goes to whoever made it."""

    @property
    def name(self) -> str:
        """By which people know it."""
        ...

    @property
    def pid(self) -> int:
        """Of its process."""
        ...

    def send(self, commands: list[Command | Request]) -> None:
        """Hands it commands, in order; returns at once, also where it is gone."""
        ...

    def close(self) -> None:
        """Ends it; returns at once."""
        ...

    def wait(self) -> None:
        """After `close`: returns when nothing more is told."""
        ...


class Seat:
    """A replica that has been opened. Owned by the router."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.active = 0
        """Calls and restorings it works on."""
        self.is_leaving = False
        self.statistics = Statistics()
        self.outbox: list[Command | Request] = []
        self._stretches: list[tuple[int, int]] = []
        """Of ticks: the first, as the replica counts them and as the trace does."""

    def number_ticks(self, first: int, in_trace: int) -> None:
        """Ticks from `first` on are in the trace from `in_trace` on."""
        self._stretches.append((first, in_trace))
        del self._stretches[:-_MOST_STRETCHES]

    def ticks_in_trace(self, ticks: Numbers) -> Numbers:
        """What the trace calls ticks of the replica that it has."""
        if not self._stretches:
            return ticks
        firsts, in_trace = np.array(self._stretches, np.int64).T
        at = np.maximum(np.searchsorted(firsts, ticks, side="right") - 1, 0)
        numbered: Numbers = np.maximum(ticks - firsts[at] + in_trace[at], 0)
        return numbered
