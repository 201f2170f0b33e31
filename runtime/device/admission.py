"""Who computes next, and whose memory is taken for it.

Order is strict: higher priority first, then depth-first over trees, so that the oldest subtree finishes before the
next is opened. Memory is taken from parked threads (longest parked first), then from threads later in order. The
first thread in order can take from all others, so it always goes on, and nothing deadlocks on a pool that fits it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from operator import attrgetter

from runtime.commands import ThreadPath
from runtime.device.entering import Group
from runtime.device.memory import ThreadMemory
from runtime.device.sequence import Sequence

_by_order = attrgetter("order")


def _discard(queue: list[Sequence], sequence: Sequence) -> None:
    index = bisect_left(queue, sequence.order, key=_by_order)
    if index < len(queue) and queue[index] is sequence:
        del queue[index]


class Admission:
    """Threads by what they wait for, and the lanes.

    A thread with a call is **waiting** (without a row), **ready** (seated, tokens to enter), in flight, or
    **following** another one that has the same tokens in flight (seated, to be ready again when those leave); one
    without a call is **parked** while it holds pages or a row, and otherwise known to nobody here.
    """

    def __init__(
        self,
        memory: ThreadMemory,
        lanes: int,
        chunk: int,
        *,
        groups_matter: bool,
        evict: Callable[[Sequence], None],
        unseat: Callable[[Sequence], None],
    ) -> None:
        """`groups_matter` where a token's content depends on what was in flight with it. `evict` takes a thread's pages
        and row, `unseat` takes the row of one that has a call; both take its tokens out of flight.
        """
        self.memory = memory
        self.waiting: list[Sequence] = []
        self.ready: list[Sequence] = []
        self.seated: list[Sequence] = []
        self.parked: dict[ThreadPath, Sequence] = {}
        """Longest parked first."""
        self.following: dict[ThreadPath, dict[ThreadPath, Sequence]] = {}
        """By leader, those that wait for what it has in flight."""
        self._leaders: dict[ThreadPath, ThreadPath] = {}
        """By follower."""
        self.free_lanes = list(range(lanes - 1, -1, -1))
        self._seats_to_take: dict[ThreadPath, Sequence] = {}
        """Parked threads that have a row, longest parked first."""
        self._holders: list[Sequence] = []
        """Waiting threads that hold pages."""
        self._chunk = chunk
        self._groups_matter = groups_matter
        self._evict = evict
        self._unseat = unseat

    def enqueue(self, sequence: Sequence) -> None:
        """A thread got a call."""
        self.leave_queues(sequence)
        if sequence.row >= 0:
            insort(self.seated, sequence, key=_by_order)
            self.make_ready(sequence)
        else:
            insort(self.waiting, sequence, key=_by_order)
            if sequence.pages:
                insort(self._holders, sequence, key=_by_order)

    def make_ready(self, sequence: Sequence) -> None:
        insort(self.ready, sequence, key=_by_order)

    def park(self, sequence: Sequence) -> None:
        """A thread's call is over."""
        self.leave_queues(sequence)
        if sequence.pages or sequence.row >= 0:
            self.parked[sequence.path] = sequence
        if sequence.row >= 0:
            self._seats_to_take[sequence.path] = sequence

    def follow(self, sequence: Sequence, leader: Sequence) -> None:
        """A ready thread waits until the tokens of another one have left."""
        _discard(self.ready, sequence)
        self.following.setdefault(leader.path, {})[sequence.path] = sequence
        self._leaders[sequence.path] = leader.path

    def stop_leading(self, sequence: Sequence) -> None:
        """The tokens of a thread are no longer in flight: those that waited for them are ready."""
        if self.memory.stop_leading(sequence):
            for follower in self.following.pop(sequence.path, {}).values():
                del self._leaders[follower.path]
                self.make_ready(follower)

    def leave_queues(self, sequence: Sequence) -> None:
        leader = self._leaders.pop(sequence.path, None)
        if leader is not None:
            del self.following[leader][sequence.path]
        _discard(self.ready, sequence)
        _discard(self.waiting, sequence)
        _discard(self.seated, sequence)
        _discard(self._holders, sequence)
        self.parked.pop(sequence.path, None)
        self._seats_to_take.pop(sequence.path, None)

    def first(self) -> Sequence | None:
        """The first thread in order that could enter, or be seated, now."""
        ready = self.ready[0] if self.ready else None
        waiting = self.waiting[0] if self.waiting else None
        if waiting is not None and not (self.memory.has_free_row or self._seats_to_take):
            # Without this a thread that comes first could keep pages from all that have rows, and wait for a row.
            waiting = waiting if self.seated[-1].order > waiting.order else None
        if ready is None or waiting is None:
            return ready or waiting
        return min(ready, waiting, key=_by_order)

    def seat(self, sequence: Sequence) -> None:
        """Gives a waiting thread a row and makes it ready. If no row is free, one is taken from a parked thread, else
        from the last in order."""
        if not self.memory.has_free_row:
            owner = next(iter(self._seats_to_take.values()), None)
            if owner is None:
                self._unseat(self.seated[-1])
            else:
                del self._seats_to_take[owner.path]
                self.memory.unseat(owner)
                if not owner.pages:
                    del self.parked[owner.path]
        _discard(self.waiting, sequence)
        _discard(self._holders, sequence)
        self.memory.seat(sequence)
        insort(self.seated, sequence, key=_by_order)
        self.make_ready(sequence)

    def next_group(self, sequence: Sequence) -> tuple[int, int]:
        """Positions of the tokens that enter together next.

        Sampled tokens enter alone and received ones in chunks of their span. Tokens whose depths are known go back in
        larger pieces, except where a token's content depends on what was in flight with it or on its predecessor's
        last latent state.
        """
        start, known = sequence.computed, len(sequence.depths)
        if start < known and not self._groups_matter:
            return start, sequence.carrying_after(start, min(known, start + self._chunk))
        span = sequence.span_at(start)
        if span.sampled:
            return start, start + 1
        end = min(span.end, start + self._chunk - (start - span.start) % self._chunk)
        return start, min(end, known) if start < known else end

    def step_back(self, sequence: Sequence, position: int) -> None:
        """Makes a computed token, and all after it, be computed again, with the group that it belongs to where that
        matters."""
        span = sequence.span_at(position)
        if self._groups_matter and not span.sampled:
            position -= (position - span.start) % self._chunk
        sequence.computed = position
        self.memory.release(sequence.cut_pages(self.memory.page_size))

    def take_lanes(self, count: int) -> list[int] | None:
        """`count` free lanes, or None if there are not so many."""
        if count > len(self.free_lanes):
            return None
        lanes = self.free_lanes[-count:]
        del self.free_lanes[-count:]
        return lanes

    def make_room(self, sequence: Sequence, end: int) -> bool:
        """Frees the pages to compute up to position `end`; False if threads that come first hold them."""
        if self.memory.is_writable(sequence, end):
            return True
        while self.memory.pages_needed(sequence, end) > self.memory.pool.free:
            victim = next((parked for parked in self.parked.values() if parked.pages), None)
            if victim is None:
                victim = self._last_holder()
                if victim is None or victim.order <= sequence.order:
                    return False
            self._evict(victim)
        return True

    def _last_holder(self) -> Sequence | None:
        """The last thread in order that has a call and holds pages."""
        seated = next((other for other in reversed(self.seated) if other.pages), None)
        waiting = self._holders[-1] if self._holders else None
        if seated is None or waiting is None:
            return seated or waiting
        return max(seated, waiting, key=_by_order)

    def give_back(self, group: Group) -> None:
        """Frees the lanes of a group that did not get into flight."""
        self.free_lanes.extend(group.lanes)
        self.stop_leading(group.sequence)
