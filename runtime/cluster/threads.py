"""Threads of the event loop, wherever they are: their commands in order, and what comes of them.

enqueue(command) -> thread's queue -> [settled at a replica] -> executed: context noted, replica asked
take(report) -> the thread's restoring, or its call -> reports for the event loop -> the queue goes on
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from runtime.cluster.calls import Calls, interrupted
from runtime.cluster.courier import Courier
from runtime.cluster.history import History, Merged, Received
from runtime.cluster.merged_trace import MergedTrace
from runtime.cluster.placement import Placement
from runtime.cluster.places import Places
from runtime.cluster.restoring import FIRST_STAND_IN, Restoring
from runtime.cluster.routed import Call, Fork, Pending, RoutedThread
from runtime.cluster.seat import Seat
from runtime.console.logs import logger
from runtime.errors import BraidError, ThreadStateError, described
from runtime.link import events
from runtime.link.commands import (
    Answered,
    CloseThread,
    Emitted,
    Extend,
    Failed,
    Finished,
    Generate,
    Interrupt,
    Merge,
    OpenThread,
    Report,
    Signalled,
    ThreadPath,
)
from runtime.link.work import Work

_log = logger("runtime.cluster")

MOST_LOSSES = 16
"""Replicas that may be lost over one call, before it is taken for what ends them."""


class RoutedThreads:
    """All that are open. Owned by the router."""

    def __init__(
        self,
        courier: Courier,
        placement: Placement,
        trace: MergedTrace,
        numbers: Iterator[int],
        reports: list[Report],
    ) -> None:
        """`numbers` are of requests to replicas; `reports` are for the event loop, and are taken there."""
        self.places = Places(courier, placement, numbers, self._fail)
        self._trace = trace
        self._numbers = numbers
        self._reports = reports
        self._calls = Calls(courier, reports)
        self._threads: dict[ThreadPath, RoutedThread] = {}
        self._merges: dict[int, RoutedThread] = {}
        """Whose merge has which number."""
        trace.follow(self._threads)

    @property
    def open(self) -> list[ThreadPath]:
        """Those that the event loop has opened and not closed."""
        return [path for path, thread in self._threads.items() if not thread.is_closed]

    # ---- replicas ---------------------------------------------------------------------------------------------------

    def join(self, seat: Seat) -> None:
        """A replica serves; threads that wait for one go on there."""
        for thread in self.places.add(seat):
            self._advance(thread)

    def lose(self, seat: Seat) -> None:
        """A replica is gone."""
        threads = self.places.lose(seat)
        for thread in threads:
            if thread.merging is not None:
                self._merges = {number: other for number, other in self._merges.items() if other is not thread}
                thread.waiting.appendleft(thread.merging)
                thread.merging = None
            if thread.call is not None:
                self._begin_again(thread, thread.call)
        for thread in threads:
            self._advance(thread)

    # ---- openings and ends ------------------------------------------------------------------------------------------

    def open_thread(self, command: OpenThread) -> None:
        """Makes a thread known; where it is, is seen when it generates."""
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
        if parent is None:
            self._note_opened(thread)
        else:
            # It begins with what its parent comes to by the commands before.
            thread.awaits_parent = True
            parent.waiting.append(Fork(thread))
            self._advance(parent)

    def _note_opened(self, thread: RoutedThread) -> None:
        told = ("thread", "inherits", "seed", "depth")
        self._trace.record(events.ThreadOpened, **{name: getattr(thread.opening, name) for name in told})

    def enqueue(self, command: Extend | Generate | Interrupt | Merge) -> None:
        """Takes a command; it is executed after those before it."""
        thread = self._threads.get(command.thread)
        if thread is None or thread.is_closed:
            self._refuse(command, command.thread)
            return
        thread.waiting.append(command)
        self._advance(thread)

    def close(self, path: ThreadPath) -> None:
        """Forgets a thread, when the end of its call, if it is in one, was told."""
        thread = self._threads.get(path)
        if thread is None or thread.is_closed:
            return
        self.places.homeless.pop(thread, None)
        for pending in thread.waiting:
            if isinstance(pending, Generate):
                self._reports.append(interrupted(path))
            elif isinstance(pending, Merge):
                self._refuse(pending, path)
        thread.waiting.clear()
        call, seat = thread.call, thread.seat
        if call is not None and (seat is None or not call.is_sent):
            self._end_in_trace(thread, call)
            self._reports.append(interrupted(path))
            thread.call = call = None
        if call is None:
            self.places.take_away(thread)
            self._forget(thread)
        else:
            assert seat is not None
            seat.outbox.append(CloseThread(path))
            thread.is_closed = True

    def _refuse(self, command: Pending, path: ThreadPath) -> None:
        error = ThreadStateError(f"Thread {path} is not open.")
        if isinstance(command, Merge):
            self._reports.append(Answered(command.number, error))
        elif not isinstance(command, Interrupt):
            self._reports.append(Failed(path, error))

    def _forget(self, thread: RoutedThread) -> None:
        self.places.unsettle(thread)
        self._threads.pop(thread.path, None)
        if not thread.awaits_parent:
            self._trace.record(events.ThreadClosed, thread=thread.path)

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
            if thread.is_restoring or not self.places.settles(thread):
                return
            self._ask(thread, call)
        while thread.waiting and not (thread.is_restoring or thread.awaits_parent or thread.merging is not None):
            head = thread.waiting[0]
            if thread.call is not None and not isinstance(head, Interrupt):
                return
            if isinstance(head, Merge):
                if not self._has_together(thread, head):
                    return
            elif isinstance(head, Generate) and not self.places.settles(thread):
                return
            thread.waiting.popleft()
            self._execute(thread, head)

    def _execute(self, thread: RoutedThread, command: Pending) -> None:
        match command:
            case Extend(_, tokens):
                position = thread.history.length
                self._trace.record(events.Received, thread=thread.path, position=position, tokens=tokens)
                thread.history = thread.history.plus(Received(tokens))
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
        if self._threads.get(child.path) is not child:
            return
        self._note_opened(child)
        child.history = History.of_fork(parent.snapshot())
        child.generate_start = child.history.length
        seat = parent.seat
        if seat is not None and not seat.is_leaving:
            self.places.settle_at(child, seat)
            seat.outbox.append(child.opening)
        child.awaits_parent = False
        self._advance(child)

    def _has_together(self, thread: RoutedThread, merge: Merge) -> bool:
        """Whether a thread and the children it is to merge are on one replica; they are brought there."""
        if not self.places.settles(thread):
            return False
        assert thread.seat is not None
        together = True
        for path in merge.children:
            child = self._threads.get(path)
            if child is None or child.is_closed:
                continue
            if child.seat is not thread.seat and child.call is None:
                self.places.take_away(child)
                self.places.bring(child, thread.seat, fill=True)
            together &= not child.is_restoring
        return together

    def _merge(self, thread: RoutedThread, merge: Merge) -> None:
        assert thread.seat is not None
        number = next(self._numbers)
        self._merges[number] = thread
        thread.merging = merge
        thread.seat.active += 1
        thread.seat.outbox.append(msgspec.structs.replace(merge, number=number))

    # ---- losses -----------------------------------------------------------------------------------------------------

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

    def take(self, seat: Seat, report: Emitted | Signalled | Finished | Failed) -> None:
        """Takes what a replica reports of a thread, or of one that stands in for it."""
        restoring = self.places.restoring(seat, report.thread)
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

    def take_answer(self, seat: Seat, answer: Answered) -> bool:
        """Takes the answer to a merge; whether it is one."""
        restoring = self.places.merges.pop(answer.number, None)
        thread = self._merges.pop(answer.number, None)
        if restoring is not None:
            self._go_on(restoring, seat, answer)
        elif thread is not None:
            self._end_merge(thread, answer)
        return restoring is not None or thread is not None

    def _go_on(self, restoring: Restoring, seat: Seat, report: Finished | Failed | Answered) -> None:
        thread = restoring.thread
        if self.places.go_on(restoring, seat, report):
            self._advance(thread)
            parent = self._threads.get(thread.path[:-1])
            if parent is not None:
                # It may wait to merge what it has forked.
                self._advance(parent)

    def _end_merge(self, thread: RoutedThread, answer: Answered) -> None:
        merge, thread.merging, thread.is_merge_in_trace = thread.merging, None, False
        assert merge is not None
        if thread.seat is not None:
            thread.seat.active -= 1
        if answer.error is None:
            children = [self._threads[path].snapshot() for path in merge.children if path in self._threads]
            start = thread.history.length
            grown = tuple(child for child in children if child.history.length > start)
            tokens = tuple(token for child in grown for token in child.history.own())
            thread.history = thread.history.plus(Merged(tokens, grown))
        self._reports.append(Answered(merge.number, answer.error))
        self._advance(thread)

    def _end_call(self, thread: RoutedThread, report: Finished | Failed) -> None:
        call, thread.call = thread.call, None
        if call is not None and call.is_sent and thread.seat is not None:
            thread.seat.active -= 1
        elif call is not None:
            self._end_in_trace(thread, call)
        self._reports.append(report)
        if thread.is_closed:
            self._forget(thread)
        else:
            self._advance(thread)

    def _end_in_trace(self, thread: RoutedThread, call: Call) -> None:
        """Of a call that no replica ends."""
        if call.has_begun_in_trace and not call.has_ended_in_trace:
            ended = {"position": thread.generate_start, "reason": "interrupted", "work": Work()}
            self._trace.record(events.GenerateFinished, thread=thread.path, **ended)
        call.has_ended_in_trace = True

    def _fail(self, thread: RoutedThread, error: BraidError) -> None:
        """A thread cannot be made again, or was given up; who waits for it is told."""
        was_sent = thread.call is not None and thread.call.is_sent
        if was_sent and thread.seat is not None:
            thread.seat.active -= 1
        self.places.take_away(thread)
        head = thread.waiting[0] if thread.waiting else None
        if thread.call is not None:
            thread.call.is_sent = False
            self._trace.record(events.ThreadFailed, thread=thread.path, error=described(error))
            thread.call.has_ended_in_trace = True
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
