"""Commands of the event loop to replicas, and their reports back, so that the two sides are as those of one engine.

    handle(command) -> thread's queue -> placed, restored if it was elsewhere -> replica
    take(replica, words) -> trace, then the thread's call -> reports for the event loop

A thread is placed when it first generates; until then its context is tokens alone. What a context came from is kept, so
that a thread whose replica is lost is made again elsewhere: calls that were running at once, others when they go on.
One thread of the operating system owns all of this; nothing here knows how replicas are reached.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import msgspec

from runtime.cluster.broadcasts import Broadcasts
from runtime.cluster.calls import Calls
from runtime.cluster.courier import Courier
from runtime.cluster.history import History, Merged, Received, Snapshot
from runtime.cluster.merged_trace import MergedTrace
from runtime.cluster.placement import Placement
from runtime.cluster.restoring import FIRST_STAND_IN, Restoring
from runtime.cluster.routed import Call, Fork, Pending, RoutedThread
from runtime.cluster.seat import Replica, Seat, Word
from runtime.console.logs import logger
from runtime.errors import BraidError, ThreadStateError, described
from runtime.link import events
from runtime.link.commands import (
    Answered,
    CloseThread,
    Command,
    DeviceFailed,
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
    Statistics,
    ThreadPath,
    ToolAnswered,
)
from runtime.link.notes import Notes
from runtime.link.work import Work

_log = logger("runtime.cluster")

MOST_LOSSES = 16
"""Replicas that may be lost over one call, before it is taken for what ends them."""


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
        self.seats: list[Seat] = []
        self._courier = courier
        self._placement = placement
        self._deliver = deliver
        self._threads: dict[ThreadPath, RoutedThread] = {}
        self._homeless: dict[RoutedThread, None] = {}
        """Those that would go on, and for which there is no replica."""
        self._reports: list[Report] = []
        self._calls = Calls(courier, self._reports)
        self._stand_ins = itertools.count()
        self._numbers = itertools.count(1)
        self._merges: dict[int, RoutedThread | Restoring] = {}
        """Whose merge has which number."""
        self.broadcasts = Broadcasts(self.seats, trace, self._numbers, self._reports, lambda: self.open_threads)
        self._past = Statistics()
        """Of replicas that are gone."""
        trace.follow(self._threads)

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
                self._open(command)
            case CloseThread():
                self._close(command.thread)
            case Extend() | Generate() | Interrupt() | Merge():
                self._enqueue(command)
            case _:
                self.broadcasts.ask(command)

    def flush(self) -> None:
        """Sends commands and delivers reports that are due."""
        while not self.broadcasts.is_holding and (held := self.broadcasts.take_held()):
            for command in held:
                self.handle(command)
        for seat in self.seats:
            if seat.outbox:
                commands, seat.outbox = seat.outbox, []
                seat.replica.send(commands)
        reports = self._reports[:]
        self._reports.clear()
        if reports or self.trace.has_news:
            is_idle = not any(seat.active for seat in self.seats)
            self.trace.afterwards((lambda: self._deliver(reports)) if reports else None, is_urgent=is_idle)

    @property
    def open_threads(self) -> list[ThreadPath]:
        """Those that the event loop has opened and not closed."""
        return [path for path, thread in self._threads.items() if not thread.is_closed]

    def statistics(self) -> Statistics:
        """Of all replicas together, those that are gone included."""
        total = msgspec.structs.asdict(self._past)
        for seat in self.seats:
            for name, value in msgspec.structs.asdict(seat.statistics).items():
                total[name] += value
        total["open_threads"] = len(self.open_threads)
        total["waiting"] += len(self._homeless)
        return Statistics(**total)

    # ---- replicas ---------------------------------------------------------------------------------------------------

    def join(self, replica: Replica) -> Seat:
        """A replica that serves; threads that wait for one go on there."""
        seat = Seat(replica)
        self.broadcasts.prepare(seat)
        self.seats.append(seat)
        homeless, self._homeless = self._homeless, {}
        for thread in homeless:
            self._advance(thread)
        return seat

    def leave(self, seat: Seat) -> None:
        """It gets nothing new; it `is_free` when its calls have ended."""
        seat.is_leaving = True

    def is_free(self, seat: Seat) -> bool:
        """Whether a replica that is leaving has nothing more to do."""
        return seat.is_leaving and not seat.active

    def lose(self, seat: Seat) -> None:
        """It is gone. Calls that it worked on begin again elsewhere, other threads when they are asked to go on."""
        if seat not in self.seats:
            return
        self.seats.remove(seat)
        self._placement.forget(seat)
        gone = msgspec.structs.replace(seat.statistics, in_flight=0, waiting=0, pages_used=0, num_pages=0)
        sums = msgspec.structs.asdict(self._past)
        self._past = Statistics(**{name: sums[name] + value for name, value in msgspec.structs.asdict(gone).items()})
        for restoring in set(seat.restoring.values()):
            restoring.stop()
            restoring.thread.is_restoring = False
        threads, seat.threads = list(seat.threads.values()), {}
        for thread in threads:
            thread.seat = None
            thread.is_filled = False
            if thread.merging is not None:
                thread.waiting.appendleft(thread.merging)
                thread.merging = None
            if thread.call is not None:
                self._begin_again(thread, thread.call)
        for number in [number for number, asked in self._merges.items() if _seat_of(asked) is None]:
            del self._merges[number]
        self.broadcasts.lose(seat)
        for thread in threads:
            self._advance(thread)

    def take(self, seat: Seat, words: Sequence[Word], statistics: Statistics) -> None:
        """Takes what a replica has said."""
        seat.statistics = statistics
        for word in words:
            if isinstance(word, Notes):
                self.trace.take(seat, word)
                continue
            if isinstance(word, str):
                self.trace.fingerprint = word
                continue
            for report in word:
                self._take(seat, report)

    # ---- threads ----------------------------------------------------------------------------------------------------

    def _open(self, command: OpenThread) -> None:
        path = command.thread
        if path in self._threads or path[0] >= FIRST_STAND_IN:
            error = ThreadStateError(f"Thread {path} is open already; close it before it is opened again.")
            self._reports.append(Failed(path, error))
            return
        parent = None if command.inherits is None else self._threads.get(command.inherits)
        if command.inherits is not None and (parent is None or parent.is_closed):
            error = ThreadStateError(f"Thread {path} cannot inherit from {command.inherits}, which is not open.")
            self._reports.append(Failed(path, error))
            return
        thread = self._threads[path] = RoutedThread(command)
        self.trace.record(
            events.ThreadOpened,
            thread=path,
            inherits=command.inherits,
            seed=command.seed,
            depth=command.depth,
        )
        if parent is not None:
            thread.awaits_parent = True
            parent.waiting.append(Fork(thread))
            self._advance(parent)

    def _enqueue(self, command: Extend | Generate | Interrupt | Merge) -> None:
        thread = self._threads.get(command.thread)
        if thread is None or thread.is_closed:
            error = ThreadStateError(f"Thread {command.thread} is not open.")
            if isinstance(command, Merge):
                self._reports.append(Answered(command.number, error))
            elif not isinstance(command, Interrupt):
                self._reports.append(Failed(command.thread, error))
            return
        thread.waiting.append(command)
        self._advance(thread)

    def _close(self, path: ThreadPath) -> None:
        thread = self._threads.get(path)
        if thread is None or thread.is_closed:
            return
        self._homeless.pop(thread, None)
        for pending in thread.waiting:
            if isinstance(pending, Generate):
                self._reports.append(interrupted(path))
            elif isinstance(pending, Merge):
                self._reports.append(Answered(pending.number, ThreadStateError(f"Thread {path} is not open.")))
        thread.waiting.clear()
        call, seat = thread.call, thread.seat
        if call is not None and (seat is None or not call.is_sent):
            # Nobody works on it now.
            self._reports.append(interrupted(path))
            thread.call = call = None
        if thread.is_restoring and seat is not None:
            self._stop_restoring(thread, seat)
        if seat is not None:
            seat.outbox.append(CloseThread(path))
        if call is None:
            self._forget(thread)
        else:
            thread.is_closed = True

    def _forget(self, thread: RoutedThread) -> None:
        self._unseat(thread)
        self._threads.pop(thread.path, None)
        self.trace.record(events.ThreadClosed, thread=thread.path)

    def _unseat(self, thread: RoutedThread) -> None:
        if thread.seat is not None:
            thread.seat.threads.pop(thread.path, None)
            thread.seat = None
        thread.is_filled = False

    # ---- one thread's commands, in order ----------------------------------------------------------------------------

    def _advance(self, thread: RoutedThread) -> None:
        """Has a thread go on with what it was asked for, as far as it can."""
        call = thread.call
        if call is not None and not call.is_sent:
            if thread.waiting and isinstance(head := thread.waiting[0], Interrupt):
                call.keep = head.keep
                thread.waiting.popleft()
                if not min(head.keep, len(call.tokens)):
                    self._end_call(thread, interrupted(thread.path))
                    return
            if thread.is_restoring or not self._is_settled(thread):
                return
            self._ask(thread, call)
        while thread.waiting and not (thread.is_restoring or thread.awaits_parent or thread.merging is not None):
            head = thread.waiting[0]
            if thread.call is not None and not isinstance(head, Interrupt):
                return
            if isinstance(head, Merge):
                if not self._has_together(thread, head):
                    return
            elif isinstance(head, Generate) and not self._is_settled(thread):
                return
            thread.waiting.popleft()
            self._execute(thread, head)

    def _execute(self, thread: RoutedThread, command: Pending) -> None:
        match command:
            case Extend(_, tokens):
                position = thread.history.length
                self.trace.record(events.Received, thread=thread.path, position=position, tokens=tokens)
                thread.history = thread.history.plus(Received(tokens))
                thread.is_filled = False
                if thread.seat is not None:
                    thread.seat.outbox.append(command)
            case Interrupt(_, keep):
                self._interrupt(thread, keep)
            case Generate():
                self._generate(thread, command)
            case Fork(child):
                self._fork(thread, child)
            case Merge():
                self._merge(thread, command)

    def _interrupt(self, thread: RoutedThread, keep: int) -> None:
        if thread.call is not None:
            thread.call.keep = keep
            self._calls.interrupt_when_told(thread)
            return
        thread.history = thread.history.cut(thread.generate_start + keep)
        if thread.seat is not None:
            thread.seat.outbox.append(Interrupt(thread.path, keep))

    def _generate(self, thread: RoutedThread, request: Generate) -> None:
        if request.depth is not None:
            thread.depth = request.depth
        thread.generate_start = thread.history.length
        try:
            thread.call = self._calls.prepared(thread, request)
        except BraidError as error:
            self._reports.append(Failed(thread.path, error))
            return
        self._ask(thread, thread.call)

    def _ask(self, thread: RoutedThread, call: Call) -> None:
        seat = thread.seat
        assert seat is not None
        depth = None if thread.depth == thread.depth_there else thread.depth
        thread.depth_there = thread.depth
        call.is_sent = True
        call.heard = call.signals_heard = 0
        seat.active += 1
        seat.outbox.append(msgspec.structs.replace(call.sent, depth=depth))
        if call.keep is not None:
            self._calls.interrupt_when_told(thread)

    def _fork(self, parent: RoutedThread, child: RoutedThread) -> None:
        """The child stays with its parent, which shares its pages, until it generates somewhere else."""
        child.history = History.of_fork(parent.snapshot())
        child.generate_start = child.history.length
        seat = parent.seat
        if seat is not None and not seat.is_leaving:
            child.seat = seat
            seat.threads[child.path] = child
            seat.outbox.append(child.opening)
            child.is_filled = parent.is_filled
        child.awaits_parent = False
        self._advance(child)

    def _has_together(self, thread: RoutedThread, merge: Merge) -> bool:
        """Whether a thread and the children it is to merge are on one replica; they are brought there."""
        if not self._is_settled(thread):
            return False
        assert thread.seat is not None
        together = True
        for path in merge.children:
            child = self._threads.get(path)
            if child is None or child.is_closed:
                continue
            if child.seat is not thread.seat:
                if child.seat is not None:
                    child.seat.outbox.append(CloseThread(path))
                    if child.is_restoring:
                        self._stop_restoring(child, child.seat)
                self._unseat(child)
                self._restore(child, thread.seat, fill=True)
            elif not child.is_restoring and not child.is_filled and child.call is None:
                self._unseat(child)
                thread.seat.outbox.append(CloseThread(path))
                self._restore(child, thread.seat, fill=True)
            together &= not child.is_restoring
        return together

    def _merge(self, thread: RoutedThread, merge: Merge) -> None:
        assert thread.seat is not None
        number = next(self._numbers)
        self._merges[number] = thread
        thread.merging = merge
        thread.seat.active += 1
        thread.seat.outbox.append(msgspec.structs.replace(merge, number=number))

    # ---- places -----------------------------------------------------------------------------------------------------

    def _is_settled(self, thread: RoutedThread) -> bool:
        """Whether a thread is on a replica that it can go on at; if not, it is sent to one."""
        seat = thread.seat
        if seat is not None and self._should_move(thread, seat):
            seat.outbox.append(CloseThread(thread.path))
            self._unseat(thread)
            seat = None
        if seat is None:
            chosen = self._placement.choose(self.seats, thread.history.tokens())
            if chosen is None:
                self._homeless[thread] = None
                return False
            self._restore(thread, chosen)
        return thread.seat is not None and not thread.is_restoring

    def _should_move(self, thread: RoutedThread, seat: Seat) -> bool:
        """A thread stays where its pages are, but for forks that have said nothing yet."""
        if seat.is_leaving:
            return any(not other.is_leaving for other in self.seats)
        history = thread.history
        is_fresh_fork = history.inherited is not None and all(isinstance(entry, Received) for entry in history.entries)
        return is_fresh_fork and self._placement.is_overloaded(seat, self.seats)

    def _restore(self, thread: RoutedThread, seat: Seat, *, fill: bool = False) -> None:
        """Has a replica make a thread's context; it `is_restoring` until that is done."""
        thread.seat = seat
        seat.threads[thread.path] = thread
        thread.is_restoring = True
        seat.active += 1
        restoring = Restoring(
            thread, seat, self._courier, lambda: next(self._stand_ins), lambda: next(self._numbers), fill
        )
        self._follow(restoring, seat, restoring.start)

    def _follow(self, restoring: Restoring, seat: Seat, step: Callable[[], bool]) -> None:
        """Takes a step of a restoring, and what follows of that."""
        thread = restoring.thread
        try:
            is_done = step()
        except Exception as error:
            self._stop_restoring(thread, seat)
            self._fail(thread, error if isinstance(error, BraidError) else BraidError(described(error)))
            return
        if restoring.merge_number is not None:
            self._merges[restoring.merge_number] = restoring
        if not is_done:
            return
        restoring.stop()
        seat.active -= 1
        thread.is_restoring = False
        thread.is_filled = restoring.fills
        thread.depth_there = restoring.depth

    def _stop_restoring(self, thread: RoutedThread, seat: Seat) -> None:
        restoring = seat.restoring[thread.path]
        paths = [path for path, other in seat.restoring.items() if other is restoring and path != thread.path]
        restoring.stop()
        thread.is_restoring = False
        seat.active -= 1
        seat.outbox += [CloseThread(path) for path in paths]

    def _begin_again(self, thread: RoutedThread, call: Call) -> None:
        """A call whose replica was lost."""
        was_sent, call.is_sent = call.is_sent, False
        if thread.is_closed or (call.keep is not None and not min(call.keep, len(call.tokens))):
            self._end_call(thread, interrupted(thread.path))
            return
        call.losses += was_sent
        if call.losses > MOST_LOSSES:
            self._fail(
                thread,
                BraidError(
                    f"Thread {thread.path} was given up: {call.losses} replicas were lost while they worked on it."
                ),
            )
            return
        _log.info("a call begins again", thread=thread.path, losses=call.losses)

    # ---- reports ----------------------------------------------------------------------------------------------------

    def _take(self, seat: Seat, report: Report) -> None:
        if isinstance(report, Answered):
            self._take_answer(seat, report)
            return
        assert not isinstance(report, DeviceFailed | ToolAnswered)
        restoring = seat.restoring.get(report.thread)
        if restoring is not None:
            if isinstance(report, Finished | Failed):
                self._go_on(restoring, seat, report)
            return
        thread = self._threads.get(report.thread)
        if thread is None or thread.seat is not seat:
            return
        call = thread.call
        if call is None or not call.is_sent:
            if isinstance(report, Failed) and not thread.is_closed:
                self._reports.append(report)
            return
        ended = self._calls.take(thread, call, seat, report)
        if ended is not None:
            self._end_call(thread, ended)

    def _take_answer(self, seat: Seat, answer: Answered) -> None:
        asked = self._merges.pop(answer.number, None)
        if asked is None:
            self.broadcasts.take(seat, answer)
        elif isinstance(asked, Restoring):
            self._go_on(asked, seat, answer)
        else:
            self._end_merge(asked, answer)

    def _go_on(self, restoring: Restoring, seat: Seat, report: Finished | Failed | Answered) -> None:
        thread = restoring.thread
        if seat.restoring.get(thread.path) is not restoring:
            return
        self._follow(restoring, seat, lambda: restoring.feed(report))
        if not thread.is_restoring:
            self._advance(thread)
            parent = self._threads.get(thread.path[:-1])
            if parent is not None:
                # It may wait to merge what it has forked.
                self._advance(parent)

    def _end_merge(self, thread: RoutedThread, answer: Answered) -> None:
        merge, thread.merging = thread.merging, None
        if merge is None:
            return
        if thread.seat is not None:
            thread.seat.active -= 1
        if answer.error is None:
            children = [self._threads[path].snapshot() for path in merge.children if path in self._threads]
            start = thread.history.length
            grown = tuple(child for child in children if child.history.length > start)
            tokens = tuple(token for child in grown for token in _own(child))
            thread.history = thread.history.plus(Merged(tokens, grown))
            thread.is_filled = True
        self._reports.append(Answered(merge.number, answer.error))
        self._advance(thread)

    def _end_call(self, thread: RoutedThread, report: Finished | Failed) -> None:
        call, thread.call = thread.call, None
        if call is not None and call.is_sent and thread.seat is not None:
            thread.seat.active -= 1
        elif call is not None and call.has_begun_in_trace:
            self.trace.record(
                events.GenerateFinished,
                thread=thread.path,
                position=thread.generate_start,
                reason="interrupted",
                work=Work(),
            )
        self._reports.append(report)
        if thread.is_closed:
            self._forget(thread)
        else:
            self._advance(thread)

    def _fail(self, thread: RoutedThread, error: BraidError) -> None:
        """A thread cannot be made again, or was given up; who waits for it is told."""
        if thread.seat is not None:
            thread.seat.outbox.append(CloseThread(thread.path))
            self._unseat(thread)
        head = thread.waiting[0] if thread.waiting else None
        if thread.call is not None:
            thread.call.is_sent = False
            self.trace.record(events.ThreadFailed, thread=thread.path, error=described(error))
            self._end_call(thread, Failed(thread.path, error))
        elif isinstance(head, Generate):
            thread.waiting.popleft()
            self._reports.append(Failed(thread.path, error))
            self._advance(thread)
        elif isinstance(head, Merge):
            thread.waiting.popleft()
            self._reports.append(Answered(head.number, error))
            self._advance(thread)
        else:
            parent = self._threads.get(thread.path[:-1])
            if parent is not None and parent.waiting and isinstance(merge := parent.waiting[0], Merge):
                parent.waiting.popleft()
                self._reports.append(Answered(merge.number, error))
                self._advance(parent)


def interrupted(path: ThreadPath) -> Finished:
    """What a call comes to that was given up before anybody worked on it."""
    return Finished(thread=path, tokens=(), logprobs=(), top_logprobs=(), depths=(), reason="interrupted", work=Work())


def _own(child: Snapshot) -> Iterator[int]:
    """What a fork has beyond its parent's context."""
    for entry in child.history.entries:
        yield from entry.tokens


def _seat_of(asked: RoutedThread | Restoring) -> Seat | None:
    return asked.seat if isinstance(asked, RoutedThread) else asked.thread.seat
