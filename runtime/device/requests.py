"""What is asked of the device as a whole, between ticks: other weights, the beginning and the end of a trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from runtime.backend.interface import Backend
from runtime.commands import Answered, LoadWeights, Request, StartRecording, StopRecording
from runtime.device.ledger import Ledger
from runtime.device.scheduler import Scheduler
from runtime.errors import BraidError, ThreadStateError, TraceError

if TYPE_CHECKING:
    from traces.writer import TraceWriter

OpenTrace = Callable[[Path, bool], "TraceWriter"]
"""Opens a trace at a path, overwriting what is there if told so; its header is of the weights as they are."""


class Requests:
    """Executes requests and reports what became of each; owns the trace that it was asked for."""

    def __init__(self, backend: Backend, scheduler: Scheduler, ledger: Ledger, open_trace: OpenTrace | None) -> None:
        """Without `open_trace` it refuses to record."""
        self._backend = backend
        self._scheduler = scheduler
        self._ledger = ledger
        self._open_trace = open_trace
        self._writer: TraceWriter | None = None

    def handle(self, request: Request) -> None:
        """Executes one request. What it cannot do is told to who asked, and has changed nothing."""
        error: Exception | None = None
        try:
            match request:
                case LoadWeights():
                    self._load_weights(request.weights)
                case StartRecording():
                    self._start_recording(request.path, request.overwrite)
                case StopRecording():
                    self._stop_recording()
        except (BraidError, ValueError, torch.OutOfMemoryError) as refusal:
            error = refusal
        self._ledger.reports.append(Answered(request.number, error))

    def close(self) -> None:
        """Closes the trace, with all that was noted for it."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            self._ledger.flush()
        finally:
            self._ledger.recorder = None
            writer.close()

    def _load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        if self._ledger.recorder is not None:
            raise TraceError(
                "The weights cannot be replaced while a trace is recorded, which is of one model. Leave "
                "engine.recording() first, or open the engine without trace=."
            )
        self._refuse_open_threads("The weights can only be replaced between trees")
        self._backend.load_weights(weights)
        self._scheduler.memory.forget_prefixes()

    def _start_recording(self, path: Path, overwrite: bool) -> None:
        if self._ledger.recorder is not None:
            raise TraceError("The engine records already, and what happens goes into one trace. Let that end first.")
        self._refuse_open_threads("A recording can only begin between trees")
        if self._open_trace is None:
            raise TraceError("This device can record nothing but the trace it was opened with.")
        self._writer = self._ledger.recorder = self._open_trace(path, overwrite)
        # What was stored before, the trace would not have: it is to say by itself what every token cost.
        self._scheduler.memory.forget_prefixes()

    def _stop_recording(self) -> None:
        if self._writer is None:
            raise TraceError("There is no recording to end.")
        self.close()
        self._refuse_open_threads("The trace ends before these threads do, and has only their beginning")

    def _refuse_open_threads(self, why: str) -> None:
        paths = [sequence.path for sequence in self._scheduler.threads]
        if paths:
            some = ", ".join(map(str, sorted(paths)[:3])) + (", ..." if len(paths) > 3 else "")
            raise ThreadStateError(f"{why}: {len(paths)} open, {some}. Finish or leave them first.")
