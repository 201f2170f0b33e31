"""What the device thread has done and has to tell: counts, reports that are due, and what a trace is to say of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from runtime.link.blocks import MICROSECONDS
from runtime.link.columns import Numbers
from runtime.link.commands import Report, ThreadPath
from runtime.link.events import Computed, Event
from runtime.link.notes import Float32, Int32, Notes, TickNotes
from runtime.link.work import Work

if TYPE_CHECKING:
    from runtime.device.latents import LatentRecorder


class Recorder(Protocol):
    """Takes what is noted, and writes it while the device goes on."""

    def now(self) -> float:
        """Seconds since recording began."""
        ...

    def take(self, notes: Notes) -> None:
        """Writes these notes soon. Waits while more is unwritten than memory is kept for."""
        ...

    def afterwards(self, action: Callable[[], None], *, is_urgent: bool) -> None:
        """Does something, on a thread of its own and in order, when all that was taken is written, or is lost; at once,
        or, if it is not urgent, within some milliseconds."""
        ...

    @property
    def failure(self) -> Exception | None:
        """What the recording has ended of, if anything was lost."""
        ...

    def close(self) -> None:
        """Ends a recording in which nothing is missing, when all is done. Raises what it ended of, or ends of."""
        ...

    def abandon(self) -> None:
        """Ends one in which something is, when all is done. Must not raise."""
        ...


class Journal:
    """Counts everything once. `work.iterations` is the sum over ticks of the tokens that took part in the iteration."""

    def __init__(self, recorder: Recorder | None, latents: LatentRecorder | None = None) -> None:
        self.recorder = recorder
        """Is set between ticks, when nothing is noted that was not handed over."""
        self.latents = latents
        """Takes states of chosen threads beside the trace; is set between ticks, too."""
        self.reports: list[Report] = []
        self._notes = Notes()
        self.ticks = 0
        self.work = Work()
        self.drafted = 0
        """Tokens that entered before it was sure that they are said."""
        self.accepted = 0
        """Those of them that were said."""
        self.evictions = 0
        """Threads that lost their pages to others."""
        self.preemptions = 0
        """Threads that generated and lost their row to others, their pages kept."""

    def record(self, kind: type[Any], **fields: Any) -> None:
        """Notes an event of `kind`, stamped now, if a recorder is there; `flush` hands it over."""
        if self.recorder is not None:
            self._notes.add(kind(time=self.recorder.now(), **fields))

    def record_as_is(self, event: Event) -> None:
        """Notes an event of the event loop's, stamped now."""
        if self.recorder is not None:
            self._notes.add(msgspec.structs.replace(event, time=self.recorder.now()))

    def record_computed(self, **fields: Any) -> None:
        """Notes that tokens were computed."""
        if self.recorder is not None:
            self._notes.add_computed(Computed(time=self.recorder.now(), **fields))

    def record_tokens(
        self,
        thread: ThreadPath,
        position: int,
        tokens: Int32 | Sequence[int],
        depths: Int32 | Sequence[int],
        logprobs: Float32 | Sequence[float],
        ticks: Numbers | Sequence[int],
    ) -> None:
        """Notes sampled tokens: see `Notes.add_tokens`."""
        if self.recorder is not None:
            self._notes.add_tokens(thread, position, tokens, depths, logprobs, ticks)

    def record_ticks(self, ticks: TickNotes) -> None:
        """Notes the last ticks, which `ticks` counts already."""
        if self.recorder is not None:
            self._notes.add_ticks(self.ticks - len(ticks.end), ticks)

    def microseconds(self) -> int:
        """Since recording began; 0 without a recorder."""
        return 0 if self.recorder is None else int(self.recorder.now() * MICROSECONDS)

    def flush(self) -> None:
        """Hands the recorder what was noted since the last time."""
        if self.recorder is not None and self._notes.size:
            # What cannot be written is not for another recorder.
            notes, self._notes = self._notes, Notes()
            self.recorder.take(notes)

    def take_reports(self) -> list[Report]:
        """Reports due since they were last taken, in order."""
        reports, self.reports = self.reports, []
        return reports
