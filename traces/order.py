"""In which order what was recorded is delivered, and what to commands that were not recorded; without a clock or a
thread of its own.

    commands -> compared with the recorded threads -> reports, in recorded order

A sampled token feeds the program's watcher (and gives `Emitted` and `Signalled`), an end of a generate gives
`Finished`, a failure `Failed`, the end of a tool's call `ToolAnswered`. A report waits for every command recorded
before it, whatever its thread: a program that sent them without having seen the report will send them again. It waits
until as much time has passed as had in the recording, and then until no command has come for `patience` seconds; then
the threads with missing commands are passed over: the others go on, and what was recorded of those follows as soon as
its command comes. So a program that does what it did before gets the same reports in the same order, each after the
same commands; and one that does not gets all that was recorded for it, and never waits longer than the recording took
(and a moment of patience for each thread that is missing). A generate that waits for nothing but an interrupt, and a
tool for nothing but to be cancelled, fail after all that.

A command that the recording does not have ends its thread at once, with a `TraceError` that says what differs.
"""

from __future__ import annotations

import math
from collections import deque

from runtime import BraidError, TraceError
from runtime.link import (
    CloseThread,
    Command,
    Emitted,
    Extend,
    Failed,
    Generate,
    Interrupt,
    Merge,
    OpenThread,
    Record,
    Report,
    Sampled,
    Signalled,
    Statistics,
    ThreadEnded,
    ThreadPath,
    TickDone,
    ToolAnswered,
    ToolCalled,
    Trace,
)
from traces.recorded import ADVICE, PendingCall, RecordedThread
from traces.steps import NO_CALL, TOOL, Step, steps_of
from traces.totals import statistics_after
from traces.tree import path_name, thread_tree, walk_threads

KEEP_ALL = 2**31 - 1

ThreadCommand = OpenThread | Extend | Merge | Generate | Interrupt | CloseThread


class RecordedOrder:
    """Takes commands and gives the reports that are due. Times are seconds since playing began.

    Raises `TraceError` for a trace whose events do not fit together.
    """

    def __init__(self, trace: Trace, patience: float) -> None:
        self._events = trace.events
        self._patience = patience
        self._threads = {
            record.path: RecordedThread(record, trace.lost) for record in walk_threads(thread_tree(trace.events))
        }
        self._steps = steps_of([thread.record for thread in self._threads.values()], len(trace.events))
        self._end = max(len(trace.events), max(self._steps, default=-1) + 1)
        self._cursor = 0
        self._late: dict[ThreadPath, deque[tuple[int, Step]]] = {}
        """Steps that were passed over, of threads that the others no longer wait for."""
        self._revived: set[ThreadPath] = set()
        """Late threads that have had a command, so that some of their steps may be due."""
        self._unknown: dict[ThreadPath, TraceError] = {}
        pages = trace.header.engine.get("num_pages")
        self.statistics = Statistics(num_pages=pages if isinstance(pages, int) else 0)
        """As it was when the last event played was recorded."""
        self._heard = 0.0
        self._open: set[ThreadPath] = set()
        """Threads that the program has opened and not closed."""
        self._held: dict[ThreadPath, list[ThreadCommand]] = {}
        """Commands that follow an interrupt, by the interrupted thread: a device ends its generate before them."""
        self._held_for: dict[ThreadPath, ThreadPath] = {}
        """Which interrupted thread the commands of a thread are held for."""

    # ---- commands ---------------------------------------------------------------------------------------------------

    def handle(self, command: Command, reports: list[Report], now: float) -> None:
        """Takes in one command; what it does not fit is reported at once."""
        self._heard = now
        if isinstance(command, Record):
            if isinstance(command.event, ToolCalled):
                self._call_tool(command.event, reports)
            elif isinstance(command.event, ThreadEnded) and command.event.thread in self._threads:
                self._end_tool(self._threads[command.event.thread])
            return
        path = command.thread
        thread = self._threads.get(path)
        if thread is None:
            self._refuse(command, reports)
            return
        if isinstance(command, OpenThread):
            self._open.add(path)
        elif isinstance(command, CloseThread):
            self._open.discard(path)
        if path in self._late:
            self._revived.add(path)
        interrupted = self._interrupted_before(command)
        if interrupted is not None:
            self._held.setdefault(interrupted, []).append(command)
            self._held_for[path] = interrupted
        else:
            self._execute(command, thread, reports)

    def _call_tool(self, called: ToolCalled, reports: list[Report]) -> None:
        """The program calls a tool, which is answered in its turn."""
        path = called.thread
        thread = self._threads.get(path)
        try:
            if thread is None:
                raise self._unknown_thread(path)
            thread.call_tool(called)
        except TraceError as error:
            reports.append(ToolAnswered(path, error=error))
            return
        if path in self._late:
            self._revived.add(path)

    def _end_tool(self, thread: RecordedThread) -> None:
        """A tool's call is over, so that what was recorded of it is told to nobody any more."""
        if thread.is_called:
            thread.is_closed = thread.is_answered = True

    def _interrupted_before(self, command: ThreadCommand) -> ThreadPath | None:
        """The thread whose interrupted generate has to end before a command is executed."""
        paths = [command.thread]
        if isinstance(command, OpenThread) and command.inherits is not None:
            paths.append(command.inherits)
        if isinstance(command, Merge):
            paths += command.children
        for path in paths:
            if path in self._held_for:
                return self._held_for[path]
            thread = self._threads.get(path)
            if thread is not None and thread.pending is not None and thread.pending.keep is not None:
                return path
        return None

    def _execute(
        self,
        command: ThreadCommand,
        thread: RecordedThread,
        reports: list[Report],
    ) -> None:
        if thread.is_closed:
            return
        try:
            match command:
                case OpenThread():
                    thread.open(command, None if command.inherits is None else self._threads.get(command.inherits))
                case CloseThread():
                    thread.interrupt(KEEP_ALL)
                    thread.is_closed = True
                case Interrupt():
                    thread.interrupt(command.keep)
                case Generate() if thread.error is not None:
                    reports.append(Failed(thread.record.path, thread.error))
                case Generate():
                    thread.generate(command)
                case Merge() if thread.error is None:
                    thread.merge(command.children)
                case Extend() if thread.error is None:
                    thread.extend(command.tokens)
                case _:
                    pass
        except TraceError as error:
            if thread.fails_next:
                thread.tried_to_fail = True
            else:
                self._fail(thread, error, reports)

    def _release(self, thread: RecordedThread, reports: list[Report]) -> None:
        """Executes what was held for a generate that has ended."""
        held = self._held.pop(thread.record.path, [])
        for path in {command.thread for command in held}:
            del self._held_for[path]
        for command in held:
            self.handle(command, reports, self._heard)

    def _refuse(self, command: ThreadCommand, reports: list[Report]) -> None:
        """Answers for a thread that the recording does not have."""
        path = command.thread
        error = self._unknown.get(path)
        if error is None:
            error = self._unknown[path] = self._unknown_thread(path)
            reports.append(Failed(path, error))
        elif isinstance(command, Generate):
            reports.append(Failed(path, error))

    def _unknown_thread(self, path: ThreadPath) -> TraceError:
        return TraceError(
            f"Thread {path_name(path)} differs from the recording: it is not among the {len(self._threads)} "
            f"threads there. {ADVICE}"
        )

    def _fail(self, thread: RecordedThread, error: BraidError, reports: list[Report]) -> None:
        thread.error = error
        thread.pending = None
        reports.append(Failed(thread.record.path, error))
        self._release(thread, reports)

    # ---- order ------------------------------------------------------------------------------------------------------

    def play(self, reports: list[Report], now: float) -> float:
        """Plays up to the end of a recorded tick that gives reports, or as far as it can.

        Returns how many seconds to wait for commands before playing on.
        """
        while True:
            if (late := self._next_late()) is not None:
                self._take(late, reports)
            elif self._cursor == self._end:
                return self._after_all(reports, now)
            elif not self._advance(reports):
                wait = self._patience_ends(self._cursor) - now
                if wait > 0 and not self._is_leaving:
                    return wait
                path = self._thread_at_cursor
                assert path is not None
                self._late[path] = deque()
            elif reports and self._is_after_tick:
                return 0.0

    @property
    def _is_leaving(self) -> bool:
        """Whether the program has closed all its threads and only awaits the ends of their generates."""
        return not self._open and any(thread.pending is not None for thread in self._threads.values())

    @property
    def _is_after_tick(self) -> bool:
        return self._cursor <= len(self._events) and isinstance(self._events[self._cursor - 1], TickDone)

    def _advance(self, reports: list[Report]) -> bool:
        """Plays the next event; False if that has to wait for a command."""
        path = self._thread_at_cursor
        if path is not None and not self._threads[path].is_over:
            step, late = self._steps.get(self._cursor), self._late.get(path)
            if step is None:
                event = self._events[self._cursor]
                if late is None and not self._threads[path].has_come(self._cursor, event):
                    return False
            elif self._is_due(step) and not late:
                self._late.pop(path, None)
                self._take(step, reports)
                if step.call == TOOL:
                    # The next result comes when the call has ended, as in the recording.
                    return False
            elif step.call == TOOL and self._threads[path].is_answered:
                if late is None:
                    return False
            elif late is not None:
                late.append((self._cursor, step))
            else:
                return False
        if self._cursor < len(self._events):
            self.statistics = statistics_after(self.statistics, self._events[self._cursor])
        self._cursor += 1
        return True

    @property
    def _thread_at_cursor(self) -> ThreadPath | None:
        if self._cursor >= len(self._events):
            return self._steps[self._cursor].thread
        event = self._events[self._cursor]
        return None if isinstance(event, TickDone) else event.thread

    def _next_late(self) -> Step | None:
        """The first of the steps passed over that is due now."""
        due: list[tuple[int, ThreadPath]] = []
        for path in list(self._revived):
            steps = self._late.get(path)
            if steps and self._threads[path].is_over:
                steps.clear()
            if steps and self._is_due(steps[0][1]):
                due.append((steps[0][0], path))
            else:
                self._revived.discard(path)
        return self._late[min(due)[1]].popleft()[1] if due else None

    def _is_due(self, step: Step) -> bool:
        """Whether the program has sent what this step answers."""
        thread = self._threads[step.thread]
        if step.call == NO_CALL:
            return thread.tried_to_fail
        if step.call == TOOL:
            return thread.is_called and not thread.is_answered
        pending = thread.pending
        if pending is None or pending.number != step.call:
            return False
        return step.sample is not None or pending.recorded.reason != "interrupted" or pending.keep is not None

    def _patience_ends(self, index: int) -> float:
        """When to wait no longer for what the event needs."""
        recorded = self._events[min(index, len(self._events) - 1)].time
        return max(recorded, self._heard) + self._patience

    def _after_all(self, reports: list[Report], now: float) -> float:
        """Ends the generates that wait for an interrupt which no longer comes, and the tools that were cancelled and
        are not, once patience is over."""
        waiting = [thread for thread in self._threads.values() if thread.pending is not None]
        uncancelled = [thread for thread in self._threads.values() if thread.is_called and not thread.is_answered]
        if not waiting and not uncancelled:
            return math.inf
        wait = self._patience_ends(self._end) - now
        if wait > 0:
            return wait
        for thread in waiting:
            self._fail(thread, thread.never_interrupted(), reports)
        reports += [thread.answered() for thread in uncancelled]
        return 0.0

    # ---- reports ----------------------------------------------------------------------------------------------------

    def _take(self, step: Step, reports: list[Report]) -> None:
        """Delivers a step that is due."""
        thread = self._threads[step.thread]
        if step.call == TOOL:
            reports.append(thread.answered())
            return
        pending = thread.pending
        if pending is None:
            self._fail(thread, thread.recorded_error(thread.record.error), reports)
            return
        call = pending.recorded
        try:
            if step.sample is not None:
                self._emit(step.sample, thread, pending, reports)
            elif call.error is not None:
                self._fail(thread, thread.recorded_error(call.error), reports)
            elif call.reason is None and pending.keep is None:
                self._fail(thread, thread.ends_early(), reports)
            else:
                reports.append(thread.finish())
                self._release(thread, reports)
        except TraceError as error:
            self._fail(thread, error, reports)

    def _emit(self, sample: Sampled, thread: RecordedThread, pending: PendingCall, reports: list[Report]) -> None:
        request, call = pending.request, pending.recorded
        pending.delivered += 1
        if request.stream:
            top = () if sample.top_logprobs is None else (sample.top_logprobs,)
            reports.append(Emitted(thread.record.path, (sample.token,), (sample.logprob,), top, (sample.depth,)))
        stops = sample.token in request.stop_tokens
        for signal in request.watcher.feed(sample.token) if request.watcher is not None else ():
            entropy = call.samples[signal.start].entropy if request.entropies else None
            reports.append(Signalled(thread.record.path, signal, math.nan if entropy is None else entropy))
            stops |= signal.stops
        pending.stops = stops
        if stops and (
            pending.delivered < len(call.kept if call.reason == "stop" else call.samples)
            or call.reason not in ("stop", None)
        ):
            raise thread.stops_early()
