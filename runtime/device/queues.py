"""What each thread waits for, in the order in which threads are served.

Order is strict: higher priority first, then depth-first over trees, so that the oldest subtree finishes before the
next is opened. Pages are taken from parked threads (longest parked first), then from threads later in order.

    IDLE ──> WAITING ──> READY <──> IN_FLIGHT
     │          ^          │ ^
     v          │          v │
    PARKED <────┴──── FOLLOWING          (any of the upper row parks when its generate ends)

A thread that is ready or waiting is set aside (ASIDE) while another model says its next token.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from operator import attrgetter

from runtime.device.sequence import Sequence, Status
from runtime.link.commands import ThreadPath

_by_order = attrgetter("order")


class Queues:
    """Threads by what they wait for. The one place that changes a thread's status."""

    def __init__(self) -> None:
        self.waiting: list[Sequence] = []
        """In order, as all lists here."""
        self.aside: dict[ThreadPath, Sequence] = {}
        """Those whose next token another model says."""
        self._ready: list[Sequence] = []
        self._with_row: list[Sequence] = []
        """Those that generate and have a row: ready, aside, following or in flight."""
        self._waiting_with_pages: list[Sequence] = []
        self._parked: dict[ThreadPath, Sequence] = {}
        """Longest parked first."""
        self._parked_with_row: dict[ThreadPath, Sequence] = {}
        self._followers: dict[ThreadPath, dict[ThreadPath, Sequence]] = {}
        """By leader, those that wait for what it has in flight."""
        self._leaders: dict[ThreadPath, ThreadPath] = {}
        """By follower."""

    # ---- what becomes of a thread -----------------------------------------------------------------------------------

    def enqueue(self, sequence: Sequence) -> None:
        """A thread has something to generate: it is ready if it has a row, else it waits for one."""
        self.leave(sequence)
        if sequence.row is not None:
            insort(self._with_row, sequence, key=_by_order)
            self.make_ready(sequence)
            return
        sequence.status = Status.WAITING
        insort(self.waiting, sequence, key=_by_order)
        if sequence.pages:
            insort(self._waiting_with_pages, sequence, key=_by_order)

    def make_ready(self, sequence: Sequence) -> None:
        """A thread with a row has tokens that may enter, and none in flight."""
        sequence.status = Status.READY
        insort(self._ready, sequence, key=_by_order)

    def take_off(self, sequence: Sequence) -> None:
        """Tokens of a ready thread are in flight."""
        _discard(self._ready, sequence)
        sequence.status = Status.IN_FLIGHT

    def set_aside(self, sequence: Sequence) -> None:
        """Another model is to say a ready or waiting thread's next token; it keeps what it has, but for who comes
        first."""
        self.leave(sequence)
        sequence.status = Status.ASIDE
        self.aside[sequence.path] = sequence
        if sequence.row is not None:
            insort(self._with_row, sequence, key=_by_order)
        elif sequence.pages:
            insort(self._waiting_with_pages, sequence, key=_by_order)

    def follow(self, sequence: Sequence, leader: Sequence) -> None:
        """A ready thread waits until the tokens of another one have left."""
        _discard(self._ready, sequence)
        sequence.status = Status.FOLLOWING
        self._followers.setdefault(leader.path, {})[sequence.path] = sequence
        self._leaders[sequence.path] = leader.path

    def release_followers(self, leader: Sequence) -> None:
        """What others waited for has left: they are ready."""
        for follower in self._followers.pop(leader.path, {}).values():
            del self._leaders[follower.path]
            self.make_ready(follower)

    def park(self, sequence: Sequence) -> None:
        """A thread's generate is over."""
        self.leave(sequence)
        if sequence.pages or sequence.row is not None:
            sequence.status = Status.PARKED
            self._parked[sequence.path] = sequence
        if sequence.row is not None:
            self._parked_with_row[sequence.path] = sequence

    def leave(self, sequence: Sequence) -> None:
        """A thread is known to no queue. Others that follow it still do."""
        match sequence.status:
            case Status.WAITING:
                _discard(self.waiting, sequence)
                _discard(self._waiting_with_pages, sequence)
            case Status.ASIDE:
                del self.aside[sequence.path]
                _discard(self._with_row, sequence)
                _discard(self._waiting_with_pages, sequence)
            case Status.PARKED:
                del self._parked[sequence.path]
                self._parked_with_row.pop(sequence.path, None)
            case Status.READY | Status.FOLLOWING | Status.IN_FLIGHT:
                _discard(self._with_row, sequence)
                if sequence.status is Status.READY:
                    _discard(self._ready, sequence)
                elif sequence.status is Status.FOLLOWING:
                    leader = self._leaders.pop(sequence.path)
                    del self._followers[leader][sequence.path]
        sequence.status = Status.IDLE

    def lose_row(self, parked: Sequence) -> None:
        """A parked thread's row was taken."""
        del self._parked_with_row[parked.path]
        if not parked.pages:
            self.leave(parked)

    # ---- who is next ------------------------------------------------------------------------------------------------

    @property
    def have_work(self) -> bool:
        """Whether a thread could enter, be given a row, or have another model speak for it."""
        return bool(self._ready or self.waiting or self.aside)

    def count_going_on(self) -> int:
        """Ready threads whose present generate has had tokens in flight before."""
        return sum(one.generate is not None and one.generate.work.computed > 0 for one in self._ready)

    def first(self, has_free_row: bool) -> Sequence | None:
        """The first thread in order that could enter, or be given a row, now."""
        ready = self._ready[0] if self._ready else None
        waiting = self.waiting[0] if self.waiting else None
        if waiting is not None and not (has_free_row or self._parked_with_row):
            # Without this a thread that comes first could keep pages from all that have rows, and wait for a row.
            waiting = waiting if self._with_row[-1].order > waiting.order else None
        if ready is None or waiting is None:
            return ready or waiting
        return min(ready, waiting, key=_by_order)

    def parked_with_row(self) -> Sequence | None:
        """The longest parked thread that has a row."""
        return next(iter(self._parked_with_row.values()), None)

    def last_with_row(self) -> Sequence:
        """The last thread in order that generates and has a row; there must be one."""
        return self._with_row[-1]

    def parked_with_pages(self) -> Sequence | None:
        """The longest parked thread that holds pages."""
        return next((parked for parked in self._parked.values() if parked.pages), None)

    def last_with_pages(self) -> Sequence | None:
        """The last thread in order that generates and holds pages."""
        seated = next((other for other in reversed(self._with_row) if other.pages), None)
        waiting = self._waiting_with_pages[-1] if self._waiting_with_pages else None
        if seated is None or waiting is None:
            return seated or waiting
        return max(seated, waiting, key=_by_order)

    def check_integrity(self, sequence: Sequence) -> None:
        """Raises `AssertionError` unless a thread is where its status says, and its status is what it should be."""
        path, status = sequence.path, sequence.status
        has_row, holds = sequence.row is not None, bool(sequence.pages) or sequence.row is not None
        generates = sequence.generate is not None
        assert (status in (Status.IDLE, Status.PARKED)) != generates, f"{path} is {status.name}"
        assert (status is Status.PARKED) == (holds and not generates), f"{path} is parked wrongly"
        assert (status is Status.IN_FLIGHT) == (sequence.flight is not None), f"{path} is in flight wrongly"
        assert (sequence in self.waiting) == (status is Status.WAITING), f"{path} waits wrongly"
        assert (sequence in self._ready) == (status is Status.READY), f"{path} is ready wrongly"
        assert (sequence in self._with_row) == (generates and has_row), f"{path} has a row wrongly"
        assert (path in self._parked) == (status is Status.PARKED)
        assert (path in self._parked_with_row) == (status is Status.PARKED and has_row)
        assert (path in self.aside) == (status is Status.ASIDE)
        assert (path in self._leaders) == (status is Status.FOLLOWING)
        assert path not in self._followers or sequence.flight is not None, f"{path} is followed for nothing"


def _discard(queue: list[Sequence], sequence: Sequence) -> None:
    index = bisect_left(queue, sequence.order, key=_by_order)
    if index < len(queue) and queue[index] is sequence:
        del queue[index]
