"""What is asked of all replicas at once: other weights, and recordings. In force on all of them, or on none.

While such a request is under way, commands wait, as they wait in line behind it at one device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from runtime.cluster.merged_trace import MergedTrace
from runtime.cluster.seat import Seat
from runtime.device.recordings import refuse_open_threads
from runtime.errors import BraidError, TraceError
from runtime.link.commands import (
    Answered,
    Command,
    FlushRecording,
    LoadWeights,
    Report,
    Request,
    StartRecording,
    StopRecording,
    ThreadPath,
)


class Broadcasts:
    """One request at a time."""

    def __init__(
        self,
        seats: Sequence[Seat],
        trace: MergedTrace,
        numbers: Iterator[int],
        reports: list[Report],
        open_threads: Callable[[], list[ThreadPath]],
    ) -> None:
        """`seats` are those that serve, and change."""
        self.discarded: list[Seat] = []
        """Replicas that took what others refused: they are to be ended, and others opened in their place."""
        self._seats = seats
        self._trace = trace
        self._numbers = numbers
        self._reports = reports
        self._open_threads = open_threads
        self._held: deque[Command | Request] = deque()
        self._request: Request | None = None
        self._awaited: dict[int, Seat] = {}
        """By number, who has yet to answer."""
        self._accepted: list[Seat] = []
        self._error: Exception | None = None
        self._weights: LoadWeights | None = None
        """In force, where they are not the checkpoint's."""

    @property
    def is_holding(self) -> bool:
        """Whether commands wait for a request."""
        return self._request is not None

    def hold(self, command: Command | Request) -> None:
        """Keeps a command until the request is answered."""
        self._held.append(command)

    def take_held(self) -> list[Command | Request]:
        """Commands that waited, in order."""
        held = list(self._held)
        self._held.clear()
        return held

    def prepare(self, seat: Seat) -> None:
        """Has a replica that joins do what the others did."""
        if self._weights is not None:
            self._send(seat, self._weights)
        request = self._request
        if (self._trace.is_open and not isinstance(request, StopRecording)) or isinstance(request, StartRecording):
            self._send(seat, self._recording())
        if isinstance(request, LoadWeights):
            self._send(seat, request)

    def ask(self, request: Request) -> None:
        """Begins a request; refuses what one device would refuse, before any replica is asked."""
        try:
            self._check(request)
        except BraidError as error:
            self._reports.append(Answered(request.number, error))
            return
        if isinstance(request, FlushRecording):
            # Answers follow what the trace has of them.
            self._trace.look()
            self._reports.append(Answered(request.number))
            return
        self._request, self._error, self._accepted = request, None, []
        if isinstance(request, StartRecording):
            asked: Request = self._recording()
        else:
            asked = request
        for seat in self._seats:
            self._send(seat, asked)
        self._end_if_answered()

    def take(self, seat: Seat, answer: Answered) -> None:
        """Takes a replica's answer."""
        if self._awaited.pop(answer.number, None) is None:
            return
        if answer.error is None:
            self._accepted.append(seat)
        elif self._request is None:
            # It has joined, and cannot do what the others did.
            self.discarded.append(seat)
        else:
            self._error = self._error or answer.error
        self._end_if_answered()

    def lose(self, seat: Seat) -> None:
        """A replica is gone, which has not to answer any more."""
        for number in [number for number, other in self._awaited.items() if other is seat]:
            del self._awaited[number]
        self._end_if_answered()

    def _check(self, request: Request) -> None:
        match request:
            case LoadWeights():
                if self._trace.is_open:
                    raise TraceError(
                        "The weights cannot be replaced while a trace is recorded, which is of one model. Leave "
                        "engine.recording() first, or open the cluster without trace=."
                    )
                refuse_open_threads("The weights can only be replaced between trees", self._open_threads())
            case StartRecording():
                self._trace.check_closed()
                if request.latents is not None:
                    raise TraceError("Latent states are not recorded on clusters. Leave latents out, or use an Engine.")
                refuse_open_threads("A recording can only begin between trees", self._open_threads())
            case StopRecording():
                self._trace.check_asked()
            case _:
                pass

    def _recording(self) -> StartRecording:
        return StartRecording(0, Path("replica"))

    def _send(self, seat: Seat, request: Request) -> None:
        number = next(self._numbers)
        self._awaited[number] = seat
        seat.outbox.append(msgspec.structs.replace(request, number=number))

    def _end_if_answered(self) -> None:
        request = self._request
        if request is None or self._awaited:
            return
        self._request = None
        error = self._error
        match request:
            case LoadWeights() if error is None:
                self._weights = request
            case LoadWeights():
                # Those that have taken the new weights are replaced by ones that have the old.
                self.discarded += self._accepted
            case StartRecording() if error is None:
                error = self._started(request)
            case StopRecording():
                error = self._stopped()
            case _:
                pass
        self._reports.append(Answered(request.number, error))

    def _started(self, request: StartRecording) -> Exception | None:
        try:
            self._trace.start(request)
        except Exception as error:
            for seat in self._seats:
                seat.outbox.append(StopRecording(0))
            return error
        return None

    def _stopped(self) -> Exception | None:
        try:
            self._trace.stop()
            refuse_open_threads(
                "The trace ends before these threads do, and has only their beginning", self._open_threads()
            )
        except BraidError as error:
            return error
        return None
