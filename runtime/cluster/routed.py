"""One thread as the router knows it, wherever it is, and the call that it is in."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from policies import DepthPolicy
from runtime.cluster.history import History, Snapshot
from runtime.cluster.seat import Seat
from runtime.link.commands import Extend, Generate, Interrupt, Merge, OpenThread, ThreadPath
from runtime.link.metering import MeteredWatcher


class Fork(NamedTuple):
    """A child is to begin with the context as it is now."""

    child: RoutedThread


Pending = Extend | Generate | Interrupt | Merge | Fork


class Call:
    """A generate, from its command to its end, on however many replicas it is begun."""

    def __init__(self, request: Generate, sent: Generate) -> None:
        self.request = request
        """As the event loop asked."""
        self.sent = sent
        """As replicas are asked: with a watcher that can travel."""
        self.tokens: list[int] = []
        """What was told of its tokens so far, to its watcher and its stream."""
        self.signals = 0
        """How many were told."""
        self.heard = self.signals_heard = 0
        """The same as the present replica has told them, which may have to say again what another has said."""
        self.is_sent = False
        """Whether the present replica has been asked."""
        self.keep: int | None = None
        """How much of it is to be kept, where it is to be interrupted."""
        self.cut: int | None = None
        """At how many tokens a limit that it shares with others ran out."""
        self.losses = 0
        """Replicas that were lost while they worked on it."""
        self.has_begun_in_trace = self.has_ended_in_trace = False
        self.sampled_in_trace = 0
        """Up to which position tokens are in the trace."""
        self.computed_in_trace = 0

    @property
    def metered(self) -> MeteredWatcher | None:
        watcher = self.request.watcher
        return watcher if isinstance(watcher, MeteredWatcher) else None

    @property
    def is_again(self) -> bool:
        """Whether it was begun before, on a replica that is gone."""
        return self.losses > 0


class RoutedThread:
    """Owned by the router."""

    def __init__(self, opening: OpenThread) -> None:
        self.path: ThreadPath = opening.thread
        self.opening = opening
        self.depth: DepthPolicy = opening.depth
        """In force now."""
        self.history = History()
        self.seat: Seat | None = None
        """The replica that has it, or is about to; None while none needs to."""
        self.depth_there: DepthPolicy = opening.depth
        """What is in force where it is."""
        self.is_restoring = False
        self.awaits_parent = False
        """Whether it is a fork whose parent has yet to come to it."""
        self.waiting: deque[Pending] = deque()
        self.call: Call | None = None
        self.merging: Merge | None = None
        """A merge that was sent."""
        self.is_merge_in_trace = False
        """Whether the trace has what is, or is again, to be merged."""
        self.generate_start = 0
        """Length of the context when the last generate began."""
        self.is_closed = False
        """Whether only the end of its call is awaited."""

    def snapshot(self) -> Snapshot:
        """It as it is now."""
        return Snapshot(self.opening, self.path, self.history)
