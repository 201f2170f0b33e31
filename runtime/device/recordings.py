"""The trace that is being written: begun, fed and ended on the device thread, between ticks."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from runtime.console.logs import logger
from runtime.device.journal import Journal, Recorder
from runtime.device.latent_file import LatentFile
from runtime.device.latents import LatentRecorder
from runtime.errors import ThreadStateError, TraceError
from runtime.link.commands import OnTraceError, StartRecording, ThreadPath

OpenTrace = Callable[[Path, bool], Recorder]
"""Opens a trace at a path, overwriting what is there if told so; its header is of the weights as they are."""

_log = logger("runtime.device")


class Recordings:
    """Owns the trace, whether the engine was opened with it or it was asked for later; the journal has it meanwhile.

    Writing one never raises here. What cannot be written ends the recording, without an end mark, and is told once;
    under "stop", `failure` is then set, for the engine to end of.
    """

    def __init__(self, journal: Journal, open_trace: OpenTrace | None, on_error: OnTraceError) -> None:
        """The journal's recorder, if it has one, is the engine's own, for which `on_error` holds. Without `open_trace`
        no other can be asked for."""
        self._journal = journal
        self._open_trace = open_trace
        self._on_error = on_error
        self._was_asked = False
        """Whether a `StartRecording` began the trace, so that a `StopRecording` may follow."""
        self.failure: Exception | None = None

    def start(self, request: StartRecording, open_threads: Collection[ThreadPath]) -> None:
        """Raises `TraceError` and `ThreadStateError` as `Engine.recording` does."""
        if self._journal.recorder is not None or self._was_asked:
            raise TraceError("The engine records already, and what happens goes into one trace. Let that end first.")
        refuse_open_threads("A recording can only begin between trees", open_threads)
        if self._open_trace is None:
            raise TraceError("This device can record nothing but the trace it was opened with.")
        recorder = self._open_trace(request.path, request.overwrite)
        if request.latents is not None:
            try:
                file = LatentFile(request.path, overwrite=request.overwrite)
            except BaseException:
                recorder.abandon()
                raise
            self._journal.latents = LatentRecorder(request.latents, file)
        self._journal.recorder = recorder
        self._on_error = request.on_error
        self._was_asked = True

    def stop(self, open_threads: Collection[ThreadPath]) -> None:
        """Ends what `start` began. Raises what the engine ends of, if that is this trace, and `ThreadStateError`."""
        if not self._was_asked:
            raise TraceError("There is no recording to end.")
        self._was_asked = False
        self.close(is_whole=True)
        if self.failure is not None:
            raise TraceError(str(self.failure)) from self.failure
        refuse_open_threads("The trace ends before these threads do, and has only their beginning", open_threads)

    def flush(self) -> None:
        """Has what was noted written, and takes notice where something could not be."""
        self._journal.flush()
        self.look()

    def look(self) -> None:
        """Takes notice where something was not written: a full disk, say, or a value that cannot be encoded."""
        recorder, latents = self._journal.recorder, self._journal.latents
        if recorder is not None and recorder.failure is not None:
            self._journal.recorder = None
            recorder.abandon()
            self._close_latents(f"the trace ended: {recorder.failure}")
            self._tell(recorder.failure)
        elif latents is not None and latents.failure is not None:
            self._journal.latents = None
            latents.abandon()
            self._tell(latents.failure, "recording_of_latents_ended")

    def close(self, *, is_whole: bool) -> None:
        """Has what was noted written and closes the trace; with an end mark if that `is_whole` and nothing was lost.

        Whatever was to be done afterwards is done."""
        self.flush()
        self._close_latents("" if is_whole else "the engine failed")
        recorder, self._journal.recorder = self._journal.recorder, None
        if recorder is None:
            return
        if not is_whole:
            recorder.abandon()
            return
        try:
            recorder.close()
        except Exception as error:
            self._tell(error)

    def _close_latents(self, lost: str) -> None:
        latents, self._journal.latents = self._journal.latents, None
        if latents is None:
            return
        try:
            latents.close(lost)
        except Exception as error:
            self._tell(error, "recording_of_latents_ended")

    def _tell(self, error: Exception, what: str = "recording_ended") -> None:
        if self._on_error == "stop":
            self.failure = error
        _log.warning(what, error=str(error), engine="ends" if self._on_error == "stop" else "goes on")


def refuse_open_threads(why: str, paths: Collection[ThreadPath]) -> None:
    """Raises `ThreadStateError` if there are any."""
    if paths:
        some = ", ".join(map(str, sorted(paths)[:3])) + (", ..." if len(paths) > 3 else "")
        raise ThreadStateError(f"{why}: {len(paths)} open, {some}. Finish or leave them first.")
