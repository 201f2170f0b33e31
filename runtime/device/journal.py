"""What the device thread has done and has to tell: counts, reports that are due, and trace events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from runtime.link.commands import Report
from runtime.link.events import Event
from runtime.link.work import Work

if TYPE_CHECKING:
    from runtime.device.latents import LatentRecorder


class Recorder(Protocol):
    """Takes trace events; a trace writer is one."""

    def now(self) -> float:
        """Seconds since recording began."""
        ...

    def write_many(self, events: list[Event]) -> None: ...

    def close(self) -> None:
        """Ends a recording in which nothing is missing."""
        ...

    def abandon(self) -> None:
        """Ends one in which something is. Must not raise."""
        ...


class Journal:
    """Counts everything once. `work.iterations` is the sum over ticks of the tokens that took part in the iteration."""

    def __init__(self, recorder: Recorder | None, latents: LatentRecorder | None = None) -> None:
        self.recorder = recorder
        """Is set between ticks, when nothing is noted that was not handed over."""
        self.latents = latents
        """Takes states of chosen threads beside the trace; is set between ticks, too."""
        self.reports: list[Report] = []
        self._events: list[Event] = []
        self.ticks = 0
        self.work = Work()
        self.drafted = 0
        """Tokens that entered before it was sure that they are said."""
        self.accepted = 0
        """Those of them that were said."""

    def record(self, kind: type[Event], **fields: Any) -> None:
        """Notes an event of `kind`, stamped now, if a recorder is there; `flush` hands it over."""
        if self.recorder is not None:
            self._events.append(kind(time=self.recorder.now(), **fields))

    def record_as_is(self, event: Event) -> None:
        """Notes an event of the event loop's, stamped now."""
        if self.recorder is not None:
            self._events.append(msgspec.structs.replace(event, time=self.recorder.now()))

    def flush(self) -> None:
        """Gives the recorder the events noted since the last time, in one call. Raises what the recorder does."""
        if self.recorder is not None and self._events:
            # What cannot be written is not for another recorder.
            events, self._events = self._events, []
            self.recorder.write_many(events)

    def take_reports(self) -> list[Report]:
        """Reports due since they were last taken, in order."""
        reports, self.reports = self.reports, []
        return reports
