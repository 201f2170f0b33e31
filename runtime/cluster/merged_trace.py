"""One trace of all replicas: what each notes of its ticks and tokens, beside what is known here of threads.

Openings, ends and messages of threads are noted here, in the order of the event loop's commands; what replicas note of
their calls follows as it comes, always before the reports of it. Ticks are numbered anew. What is computed again after
a replica was lost is in the trace once, as it was first noted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from runtime.cluster.routed import Call, RoutedThread
from runtime.cluster.seat import Seat
from runtime.console.logs import logger
from runtime.device.journal import Recorder
from runtime.errors import TraceError
from runtime.link import events
from runtime.link.commands import OnTraceError, StartRecording, ThreadPath
from runtime.link.events import Event
from runtime.link.notes import Notes, SampledRun, TickRun

_log = logger("runtime.cluster")

OpenTrace = Callable[[Path, bool, str], Recorder]
"""Opens a trace at a path, overwriting what is there if told so, of a model with a fingerprint."""

_NOTED_HERE = (events.ThreadOpened, events.ThreadClosed, events.Received)


class MergedTrace:
    """Owned by the router's thread. Writing never raises here: what cannot be written ends the recording, as
    `on_error` says, and is told once."""

    def __init__(self, open_trace: OpenTrace) -> None:
        self.fingerprint = ""
        """Of the weights in force, as replicas say it."""
        self.failure: Exception | None = None
        """What the cluster is to end of, when its calls are done."""
        self._open_trace = open_trace
        self._recorder: Recorder | None = None
        self._on_error: OnTraceError = "drop"
        self._was_asked = False
        self._notes = Notes()
        self._ticks = 0
        self._threads: Mapping[ThreadPath, RoutedThread] = {}

    def follow(self, threads: Mapping[ThreadPath, RoutedThread]) -> None:
        """Says which threads there are; the mapping changes."""
        self._threads = threads

    # ---- its beginning and end --------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self._recorder is not None

    def begin(self, path: Path, overwrite: bool, on_error: OnTraceError) -> None:
        """Begins the trace that the cluster was opened with. Raises `TraceError`."""
        self._recorder = self._open_trace(path, overwrite, self.fingerprint)
        self._on_error = on_error

    def check_closed(self) -> None:
        """Raises `TraceError` while something is recorded."""
        if self._recorder is not None or self._was_asked:
            raise TraceError("The engine records already, and what happens goes into one trace. Let that end first.")

    def check_asked(self) -> None:
        """Raises `TraceError` unless a recording was asked for."""
        if not self._was_asked:
            raise TraceError("There is no recording to end.")

    def start(self, request: StartRecording) -> None:
        """Begins a trace that is asked for, when replicas note what it is to have. Raises `TraceError`."""
        self.begin(request.path, request.overwrite, request.on_error)
        self._ticks = 0
        self._was_asked = True

    def stop(self) -> None:
        """Ends it. Raises `TraceError` for one that the cluster ends of."""
        self._was_asked = False
        self.close(is_whole=True)
        if self.failure is not None:
            raise TraceError(str(self.failure)) from self.failure

    def close(self, *, is_whole: bool) -> None:
        """Has everything written; with an end mark if that `is_whole` and nothing was lost."""
        self._flush()
        self.look()
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return
        if not is_whole:
            recorder.abandon()
            return
        try:
            recorder.close()
        except Exception as error:
            self._tell(error)

    def look(self) -> None:
        """Takes notice where something was not written."""
        recorder = self._recorder
        if recorder is not None and recorder.failure is not None:
            self._recorder = None
            recorder.abandon()
            self._tell(recorder.failure)

    def _tell(self, error: Exception) -> None:
        if self._on_error == "stop":
            self.failure = error
        _log.warning("recording_ended", error=str(error), engine="ends" if self._on_error == "stop" else "goes on")

    # ---- what it gets -----------------------------------------------------------------------------------------------

    @property
    def has_news(self) -> bool:
        """Whether something was noted and not handed over."""
        return self._recorder is not None and self._notes.size > 0

    def record(self, kind: type[Any], **fields: Any) -> None:
        """Notes an event of a thread, stamped now."""
        if self._recorder is not None:
            self._notes.add(kind(time=self._recorder.now(), **fields))

    def record_as_is(self, event: Event) -> None:
        """Notes an event of the event loop's, stamped now."""
        if self._recorder is not None:
            self._notes.add(msgspec.structs.replace(event, time=self._recorder.now()))

    def afterwards(self, action: Callable[[], None] | None, *, is_urgent: bool) -> None:
        """Does something when all that was noted is written, or is lost; at once where nothing is recorded."""
        self._flush()
        self.look()
        if action is None:
            return
        if self._recorder is None:
            action()
        else:
            self._recorder.afterwards(action, is_urgent=is_urgent)

    def _flush(self) -> None:
        if self._recorder is not None and self._notes.size:
            notes, self._notes = self._notes, Notes()
            self._recorder.take(notes)

    def take(self, seat: Seat, notes: Notes) -> None:
        """Takes what a replica has noted, in its order."""
        if self._recorder is None:
            return
        parts = list(notes.parts())
        # Tokens refer to ticks that are noted after them.
        numbers = []
        for part in parts:
            if isinstance(part, TickRun):
                numbers.append(self._ticks)
                seat.number_ticks(part.number, self._ticks)
                self._ticks += len(part.ticks.end)
        for part in parts:
            if isinstance(part, TickRun):
                self._notes.add_ticks(numbers.pop(0), part.ticks)
            elif isinstance(part, SampledRun):
                self._take_run(seat, part)
            elif not isinstance(part, _NOTED_HERE):
                self._take_event(seat, part)

    def _take_run(self, seat: Seat, run: SampledRun) -> None:
        thread = self._thread_of(seat, run.thread)
        if thread is None or thread.call is None or thread.call.has_ended_in_trace:
            return
        call, end = thread.call, run.position + len(run.tokens)
        known = max(0, min(call.sampled_in_trace - run.position, len(run.tokens)))
        if known and not call.is_again:
            known = 0
        ticks = seat.ticks_in_trace(np.asarray(run.ticks, np.int64))
        depths = run.depths
        # The token before each was computed with it, alone.
        computed_to = call.computed_in_trace if call.is_again else 0
        if run.is_fed_back and not known and run.position > computed_to:
            self._notes.add_computed(
                events.Computed(
                    time=0.0,
                    tick=int(ticks[0]),
                    thread=run.thread,
                    position=run.position - 1,
                    count=1,
                    depth=int(depths[0]),
                    recomputed=False,
                )
            )
        call.computed_in_trace = max(call.computed_in_trace, end - 1)
        if known < len(run.tokens):
            if known and run.position + known > computed_to:
                # The row that has it computed was never noted.
                self._notes.add_computed(
                    events.Computed(
                        time=0.0,
                        tick=int(ticks[known]),
                        thread=run.thread,
                        position=run.position + known - 1,
                        count=1,
                        depth=int(depths[known]),
                        recomputed=False,
                    )
                )
            self._notes.add_tokens(
                run.thread,
                run.position + known,
                run.tokens[known:],
                depths[known:],
                run.logprobs[known:],
                ticks[known:],
            )
        call.sampled_in_trace = max(call.sampled_in_trace, end)

    def _take_event(self, seat: Seat, event: Event) -> None:
        # All that devices note themselves is of a thread; the base class of events has none.
        path: ThreadPath = event.thread  # type: ignore[attr-defined]
        thread = self._thread_of(seat, path)
        if thread is None:
            return
        call = thread.call
        if call is not None and call.has_ended_in_trace and not isinstance(event, events.Evicted):
            return
        match event:
            case events.Computed():
                self._take_computed(seat, call, event)
            case events.Sampled() if call is not None:
                if not call.is_again or event.position >= call.sampled_in_trace:
                    self._notes.add(self._renumbered(seat, event))
                    call.sampled_in_trace = max(call.sampled_in_trace, event.position + 1)
            case events.Scored():
                if call is None or not call.is_again or event.position >= call.sampled_in_trace:
                    self._notes.add(self._renumbered(seat, event))
                if call is not None:
                    call.sampled_in_trace = max(call.sampled_in_trace, event.position + 1)
            case events.GenerateStarted() if call is not None:
                if not call.has_begun_in_trace:
                    self._notes.add(event)
                call.has_begun_in_trace = True
            case events.Merged():
                # A replica may be lost after its note of it, and before its answer.
                if not thread.is_merge_in_trace:
                    self._notes.add(event)
                thread.is_merge_in_trace = True
            case events.GenerateFinished() | events.ThreadFailed() if call is not None:
                # The same.
                if not call.has_ended_in_trace:
                    self._notes.add(event)
                call.has_ended_in_trace = True
            case _:
                self._notes.add(event)

    def _take_computed(self, seat: Seat, call: Call | None, event: events.Computed) -> None:
        end = event.position + event.count
        if call is not None and call.is_again and not event.recomputed:
            known = max(0, min(call.computed_in_trace - event.position, event.count))
            if known == event.count:
                return
            event = msgspec.structs.replace(
                event,
                position=event.position + known,
                count=event.count - known,
                received=min(event.received, event.count - known),
            )
        self._notes.add_computed(self._renumbered(seat, event))
        if call is not None:
            call.computed_in_trace = max(call.computed_in_trace, end)

    def _renumbered(self, seat: Seat, event: Any) -> Any:
        tick = seat.ticks_in_trace(np.array([event.tick]))
        return msgspec.structs.replace(event, tick=int(tick[0]))

    def _thread_of(self, seat: Seat, path: ThreadPath) -> RoutedThread | None:
        """The thread that a replica's note is of; None for one that it is only making again, or has no more."""
        thread = self._threads.get(path)
        if thread is None or thread.seat is not seat or thread.is_restoring:
            return None
        return thread
