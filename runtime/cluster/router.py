"""Commands of the event loop to replicas, and their reports back, so that the two sides are as those of one engine.

    handle(command) -> thread's queue -> placed, restored if it was elsewhere -> replica
    take(replica, words) -> trace, then the thread's call -> reports for the event loop

A thread is placed when it first generates; until then its context is tokens alone. What a context came from is kept, so
that a thread whose replica is lost is made again elsewhere: calls that were running at once, others when they go on.
One thread of the operating system owns all of this; nothing here knows how replicas are reached.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from policies import TickCosts
from runtime.cluster.broadcasts import Broadcasts
from runtime.cluster.courier import Courier
from runtime.cluster.merged_trace import MergedTrace
from runtime.cluster.placement import Placement
from runtime.cluster.seat import Replica, Seat, Word
from runtime.cluster.threads import RoutedThreads
from runtime.link.commands import (
    Answered,
    CloseThread,
    Command,
    Emitted,
    Extend,
    Failed,
    Finished,
    Generate,
    Interrupt,
    Merge,
    OpenThread,
    Record,
    Report,
    Request,
    Signalled,
    Statistics,
)
from runtime.link.notes import Notes


class Router:
    """Everything that is decided about threads and replicas. Its methods are called by one thread, one at a time;
    `flush` after each sends what they have come to."""

    def __init__(
        self,
        courier: Courier,
        placement: Placement,
        trace: MergedTrace,
        deliver: Callable[[list[Report]], None],
    ) -> None:
        self.trace = trace
        self._deliver = deliver
        self._reports: list[Report] = []
        numbers = itertools.count(1)
        self._threads = RoutedThreads(courier, placement, trace, numbers, self._reports)
        self._seats = self._threads.places.seats
        self.broadcasts = Broadcasts(self._seats, trace, numbers, self._reports, lambda: self._threads.open)
        self._past = Statistics()
        """Of replicas that are gone."""

    # ---- the event loop's side --------------------------------------------------------------------------------------

    def handle(self, command: Command | Request) -> None:
        """Takes one command. What comes after a request for all replicas waits until that is answered."""
        if self.broadcasts.is_holding:
            self.broadcasts.hold(command)
            return
        match command:
            case Record(event):
                self.trace.record_as_is(event)
            case OpenThread():
                self._threads.open_thread(command)
            case CloseThread():
                self._threads.close(command.thread)
            case Extend() | Generate() | Interrupt() | Merge():
                self._threads.enqueue(command)
            case _:
                self.broadcasts.ask(command)

    def flush(self, *, lingers: bool = False) -> bool:
        """Sends commands and delivers reports that are due. With `lingers`, threads are closed together with what is
        sent next; whether anything was held back for that."""
        while not self.broadcasts.is_holding and (held := self.broadcasts.take_held()):
            for command in held:
                self.handle(command)
        holds_back = False
        for seat in self._seats:
            if lingers and all(isinstance(command, CloseThread) for command in seat.outbox):
                holds_back |= bool(seat.outbox)
            elif seat.outbox:
                commands, seat.outbox = seat.outbox, []
                seat.replica.send(commands)
        reports = self._reports[:]
        self._reports.clear()
        if reports or self.trace.has_news:
            is_idle = not any(seat.active for seat in self._seats)
            self.trace.afterwards((lambda: self._deliver(reports)) if reports else None, is_urgent=is_idle)
        return holds_back

    def statistics(self) -> Statistics:
        """Of all replicas together, those that are gone included."""
        total = _counts(self._past)
        for seat in self._seats:
            for name, value in _counts(seat.statistics).items():
                total[name] += value
        total["open_threads"] = len(self._threads.open)
        total["waiting"] += len(self._threads.places.homeless)
        measured = [seat.statistics.tick_costs for seat in self._seats if seat.statistics.tick_costs is not None]
        return Statistics(**total, tick_costs=_mean(measured))

    # ---- replicas ---------------------------------------------------------------------------------------------------

    def join(self, replica: Replica) -> Seat:
        """A replica that serves; threads that wait for one go on there."""
        seat = Seat(replica)
        self.broadcasts.prepare(seat)
        self._threads.join(seat)
        return seat

    def leave(self, seat: Seat) -> None:
        """It gets nothing new; it `is_free` when its calls have ended."""
        seat.is_leaving = True

    def is_free(self, seat: Seat) -> bool:
        """Whether a replica that is leaving has nothing more to do."""
        return seat.is_leaving and not seat.active

    def lose(self, seat: Seat) -> None:
        """It is gone. Calls that it worked on begin again elsewhere, other threads when they are asked to go on."""
        if seat not in self._seats:
            return
        gone = msgspec.structs.replace(seat.statistics, in_flight=0, waiting=0, pages_used=0, num_pages=0)
        sums = _counts(self._past)
        self._past = Statistics(**{name: sums[name] + value for name, value in _counts(gone).items()})
        self._threads.lose(seat)
        self.broadcasts.lose(seat)

    def take(self, seat: Seat, words: Sequence[Word], statistics: Statistics) -> None:
        """Takes what a replica has said."""
        seat.statistics = statistics
        for word in words:
            if isinstance(word, Notes):
                self.trace.take(seat, word)
            elif isinstance(word, str):
                self.trace.fingerprint = word
            else:
                for report in word:
                    self._take_report(seat, report)

    def _take_report(self, seat: Seat, report: Report) -> None:
        match report:
            case Answered():
                if not self._threads.take_answer(seat, report):
                    self.broadcasts.take(seat, report)
            case Emitted() | Signalled() | Finished() | Failed():
                self._threads.take(seat, report)
            case _:
                raise AssertionError(f"a replica reports {type(report).__name__}")


def _counts(statistics: Statistics) -> dict[str, Any]:
    """What of it adds up."""
    counts = msgspec.structs.asdict(statistics)
    del counts["tick_costs"]
    return counts


def _mean(costs: list[TickCosts]) -> TickCosts | None:
    """What a tick takes on one of the replicas."""
    if not costs:
        return None
    return TickCosts(
        sum(each.tick_seconds for each in costs) / len(costs), sum(each.lane_seconds for each in costs) / len(costs)
    )
