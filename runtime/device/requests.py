"""What is asked of the device as a whole, between ticks: other weights, the beginning and the end of a trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from runtime.backend.interface import Backend
from runtime.device.journal import Journal
from runtime.device.kv_cache import KVCache
from runtime.device.recordings import Recordings, refuse_open_threads
from runtime.device.threads import OpenThreads
from runtime.errors import TraceError
from runtime.link.commands import Answered, FlushRecording, LoadWeights, Request, StartRecording, StopRecording

if TYPE_CHECKING:
    from torch import Tensor


class Requests:
    """Executes requests and reports what became of each."""

    def __init__(
        self, backend: Backend, threads: OpenThreads, kv_cache: KVCache, journal: Journal, recordings: Recordings
    ) -> None:
        self._backend = backend
        self._threads = threads
        self._kv_cache = kv_cache
        self._journal = journal
        self._recordings = recordings

    def handle(self, request: Request) -> None:
        """Executes one request. What it cannot do is told to who asked, and has changed nothing."""
        error: Exception | None = None
        try:
            match request:
                case LoadWeights():
                    self._load_weights(request.weights)
                case StartRecording():
                    self._recordings.start(request, self._open_threads)
                    # What was stored before, the trace would not have: it is to say by itself what every token cost.
                    self._kv_cache.forget_prefixes()
                case StopRecording():
                    self._recordings.stop(self._open_threads)
                case FlushRecording():
                    self._recordings.flush()
        except Exception as refusal:
            error = refusal
        self._journal.reports.append(Answered(request.number, error))

    @property
    def _open_threads(self) -> list[tuple[int, ...]]:
        return [sequence.path for sequence in self._threads]

    def _load_weights(self, weights: Mapping[str, Tensor]) -> None:
        if self._journal.recorder is not None:
            raise TraceError(
                "The weights cannot be replaced while a trace is recorded, which is of one model. Leave "
                "engine.recording() first, or open the engine without trace=."
            )
        refuse_open_threads("The weights can only be replaced between trees", self._open_threads)
        self._backend.load_weights(weights)
        self._kv_cache.forget_prefixes()
