"""Where threads are: replicas that serve, threads on their way to one, and those for which there is none."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from runtime.cluster.courier import Courier
from runtime.cluster.history import Asked, Received
from runtime.cluster.placement import Placement
from runtime.cluster.restoring import Awaited, Restoring
from runtime.cluster.routed import RoutedThread
from runtime.cluster.seat import Seat
from runtime.errors import BraidError, described
from runtime.link.commands import CloseThread, ThreadPath


class Places:
    """Brings threads to replicas. Owned by the router."""

    def __init__(
        self,
        courier: Courier,
        placement: Placement,
        numbers: Iterator[int],
        fail: Callable[[RoutedThread, BraidError], None],
    ) -> None:
        """`numbers` are of requests to replicas. `fail` is told of a thread that cannot be made again anywhere."""
        self.seats: list[Seat] = []
        """Replicas that serve, those that are leaving included."""
        self.homeless: dict[RoutedThread, None] = {}
        """Threads that would go on, and for which there is no replica."""
        self.merges: dict[int, Restoring] = {}
        """By number, whose merge is awaited."""
        self._courier = courier
        self._placement = placement
        self._numbers = numbers
        self._fail = fail
        self._stand_ins = itertools.count()
        self._threads: dict[Seat, dict[ThreadPath, RoutedThread]] = {}
        """By replica, what is open there or on its way."""
        self._under_way: dict[Seat, dict[ThreadPath, Restoring]] = {}

    def add(self, seat: Seat) -> list[RoutedThread]:
        """A replica that serves. Gives the threads that waited for one."""
        self.seats.append(seat)
        self._threads[seat], self._under_way[seat] = {}, {}
        homeless, self.homeless = list(self.homeless), {}
        return homeless

    def lose(self, seat: Seat) -> list[RoutedThread]:
        """A replica is gone. Gives the threads that were there, or on their way."""
        self.seats.remove(seat)
        self._placement.forget(seat)
        for restoring in set(self._under_way.pop(seat).values()):
            restoring.stop()
            restoring.thread.is_restoring = False
        self.merges = {number: other for number, other in self.merges.items() if other.thread.is_restoring}
        threads = list(self._threads.pop(seat).values())
        for thread in threads:
            thread.seat = None
        return threads

    def restoring(self, seat: Seat, path: ThreadPath) -> Restoring | None:
        """What sends a replica something under a path, to make a thread again."""
        return self._under_way[seat].get(path)

    def settles(self, thread: RoutedThread) -> bool:
        """Whether a thread is on a replica that it can go on at; if not, it is sent to one."""
        seat = thread.seat
        if seat is not None and self._should_move(thread, seat):
            self.take_away(thread)
            seat = None
        if seat is None:
            chosen = self._placement.choose(self.seats, thread.history.tokens())
            if chosen is None:
                self.homeless[thread] = None
                return False
            self.bring(thread, chosen)
        return thread.seat is not None and not thread.is_restoring

    def bring(self, thread: RoutedThread, seat: Seat, *, fill: bool = False) -> None:
        """Has a replica make a thread's context; it `is_restoring` until that is done. `fill` has it computed too."""
        self.settle_at(thread, seat)
        thread.is_restoring = True
        seat.active += 1
        restoring = Restoring(
            thread,
            seat,
            self._courier,
            lambda: next(self._stand_ins),
            lambda: next(self._numbers),
            fill,
            self._under_way[seat],
        )
        self._follow(restoring, seat, restoring.start)

    def go_on(self, restoring: Restoring, seat: Seat, report: Awaited) -> bool:
        """Takes what a restoring has waited for; whether that is over."""
        thread = restoring.thread
        if self.restoring(seat, thread.path) is not restoring:
            return False
        self._follow(restoring, seat, lambda: restoring.feed(report))
        return not thread.is_restoring

    def settle_at(self, thread: RoutedThread, seat: Seat) -> None:
        """A thread is, or will be, on a replica."""
        thread.seat = seat
        self._threads[seat][thread.path] = thread

    def take_away(self, thread: RoutedThread) -> None:
        """Closes a thread where it is, if it is anywhere."""
        seat = thread.seat
        if seat is None:
            return
        if thread.is_restoring:
            self._stop(thread, seat)
        seat.outbox.append(CloseThread(thread.path))
        self.unsettle(thread)

    def unsettle(self, thread: RoutedThread) -> None:
        """A thread is nowhere."""
        if thread.seat is not None:
            self._threads[thread.seat].pop(thread.path, None)
            thread.seat = None

    def _should_move(self, thread: RoutedThread, seat: Seat) -> bool:
        """A thread stays where its pages are, but for forks that have said nothing yet."""
        if seat.is_leaving:
            return any(not other.is_leaving for other in self.seats)
        history = thread.history
        is_fresh_fork = history.inherited is not None and all(
            isinstance(entry, Received | Asked) for entry in history.entries
        )
        return is_fresh_fork and self._placement.is_overloaded(seat, self.seats)

    def _follow(self, restoring: Restoring, seat: Seat, step: Callable[[], bool]) -> None:
        """Takes a step of a restoring, and what follows of that."""
        thread = restoring.thread
        try:
            is_done = step()
        except Exception as error:
            self._stop(thread, seat)
            self._fail(thread, error if isinstance(error, BraidError) else BraidError(described(error)))
            return
        if restoring.merge_number is not None:
            self.merges[restoring.merge_number] = restoring
        if not is_done:
            return
        restoring.stop()
        seat.active -= 1
        thread.is_restoring = False
        thread.depth_there = restoring.depth

    def _stop(self, thread: RoutedThread, seat: Seat) -> None:
        under_way = self._under_way[seat]
        restoring = under_way[thread.path]
        paths = [path for path, other in under_way.items() if other is restoring and path != thread.path]
        restoring.stop()
        thread.is_restoring = False
        seat.active -= 1
        seat.outbox += [CloseThread(path) for path in paths]
