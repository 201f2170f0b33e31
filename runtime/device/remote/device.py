"""A device whose model a server runs, over the completions API.

    event loop:  coroutine -> command ------> [ call_soon ] ---+            +---> reports, in one hop
                                                               v            |
    device thread, an asyncio loop:   RemoteThreads: contexts, a task for each generate
                                        |                      ^
                                        v                      | Heard: tokens, log-probabilities, an end
                                      request: the context -> Connection -> stream of chunks

The thread owns sockets, contexts, watchers and the trace's notes. A generate is one streamed completion of the whole
context; where it breaks off, another of the context and what has come. Each chunk is a tick: its tokens are appended
and fed to the watcher, whose signals reach coroutines while the stream goes on. What a watcher or a stop token ends is
ended here: the request is closed. Servers that know no token ids get text, and their text is tokens by the vocabulary
that the engine was given, or bytes.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from functools import partial

import msgspec

from runtime.console.logs import logger
from runtime.device.journal import Journal, Recorder
from runtime.device.recordings import OpenTrace, Recordings
from runtime.device.remote.connection import Connection
from runtime.device.remote.offer import Offer
from runtime.device.remote.settings import RemoteSettings
from runtime.device.remote.threads import RemoteThreads
from runtime.device.remote.vocabulary import Vocabulary
from runtime.errors import EngineFailed, RemoteError, TraceError
from runtime.link.commands import (
    Answered,
    CloseThread,
    Command,
    Deliver,
    DeviceFailed,
    Extend,
    Failed,
    FlushRecording,
    Generate,
    Interrupt,
    LoadWeights,
    Merge,
    OnTraceError,
    OpenThread,
    Record,
    Report,
    Request,
    StartRecording,
    Statistics,
    ThreadPath,
)

_log = logger("runtime.remote")


class RemoteDevice:
    """A `Device` on a thread of its own, which is an event loop."""

    def __init__(
        self,
        offer: Offer,
        settings: RemoteSettings,
        vocabulary: Vocabulary,
        *,
        max_context: int | None,
        vocab_size: int | None,
        recorder: Recorder | None = None,
        open_trace: OpenTrace | None = None,
        on_trace_error: OnTraceError = "drop",
    ) -> None:
        self._offer = offer
        self._settings = settings
        self._journal = Journal(recorder)
        self._recordings = Recordings(self._journal, open_trace, on_trace_error)
        self._make_threads = partial(
            RemoteThreads,
            offer,
            settings,
            vocabulary,
            journal=self._journal,
            max_context=max_context,
            vocab_size=vocab_size,
            changed=self._change,
        )
        self._threads: RemoteThreads | None = None
        self._commands: deque[Command | Request] = deque()
        self._is_woken = False
        self._is_due = False
        self._has_stopped = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()
        self._failure: BaseException | None = None
        self._statistics = Statistics()
        self._deliver: Deliver | None = None
        self._thread: threading.Thread | None = None

    def start(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="braid-remote", daemon=True)
        self._thread.start()

    def send(self, command: Command | Request) -> None:
        if self._has_stopped:
            return
        self._commands.append(command)
        # The loop clears the flag before it empties the queue, so that a set flag means it will still see this.
        if not self._is_woken:
            self._is_woken = True
            self._soon(self._take_commands)

    def stop(self) -> None:
        self._soon(self._ended.set)
        if self._thread is not None:
            self._thread.join()
        self._has_stopped = True

    @property
    def first_tree(self) -> int:
        return 0

    @property
    def statistics(self) -> Statistics:
        return self._statistics

    def _soon(self, function: Callable[[], None]) -> None:
        try:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            # The loop has ended, and with it all that could be asked for.
            self._has_stopped = True

    # ---- on the device thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        assert self._deliver is not None
        assert self._loop is not None
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            self._has_stopped = True
            _log.error("device_failed", error=repr(error))
            self._deliver([DeviceFailed(error)])
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        connection = Connection(self._offer.address, self._settings)
        is_whole = False
        self._threads = self._make_threads(connection=connection)
        try:
            # Commands may have come before there was anybody to take them.
            self._take_commands()
            await self._ended.wait()
            self._take_commands()
            if self._failure is not None:
                raise self._failure
            is_whole = True
        finally:
            await self._threads.aclose()
            await connection.aclose()
            self._hand_over()
            self._recordings.close(is_whole=is_whole)
            self._statistics = msgspec.structs.replace(self._statistics, open_threads=0, in_flight=0, waiting=0)

    def _take_commands(self) -> None:
        if self._threads is None:
            return
        self._is_woken = False
        try:
            while self._commands:
                self._handle(self._commands.popleft())
            self._change()
        except BaseException as error:
            self._fail(error)

    def _handle(self, command: Command | Request) -> None:
        """Executes one command. What it raises unexpectedly ends the thread it names."""
        self._recordings.look()
        assert self._threads is not None
        try:
            self._execute(command, self._threads)
        except BaseException as cause:
            thread: ThreadPath | None = getattr(command, "thread", None)
            if thread is None:
                raise
            self._threads.fail_unforeseen(thread, cause)

    def _execute(self, command: Command | Request, threads: RemoteThreads) -> None:
        match command:
            case OpenThread() | Generate() if self._recordings.failure is not None:
                error = EngineFailed(f"The engine ends, since its trace cannot go on: {self._recordings.failure}")
                self._journal.reports.append(Failed(command.thread, error))
            case OpenThread():
                threads.open(command)
            case Extend():
                threads.extend(command)
            case Merge():
                threads.merge(command)
            case Generate():
                threads.generate(command)
            case Interrupt():
                threads.interrupt(command)
            case CloseThread():
                threads.close(command)
            case Record(event):
                self._journal.record_as_is(event)
            case _:
                self._answer(command, threads)

    def _answer(self, request: Request, threads: RemoteThreads) -> None:
        error: Exception | None = None
        try:
            match request:
                case LoadWeights():
                    raise RemoteError("The weights of this engine are the server's, and cannot be replaced from here.")
                case StartRecording():
                    if request.latents is not None:
                        raise TraceError("A server tells no latent states; leave latents out.")
                    self._recordings.start(request, threads.paths)
                case FlushRecording():
                    self._recordings.flush()
                case _:
                    self._recordings.stop(threads.paths)
        except Exception as refusal:
            error = refusal
        self._journal.reports.append(Answered(request.number, error))

    def _change(self) -> None:
        """Has what is due handed over when this turn of the loop is done."""
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._give)

    def _give(self) -> None:
        self._is_due = False
        try:
            self._hand_over()
            if self._recordings.failure is not None and self._threads is not None and not self._threads.speaking:
                raise self._recordings.failure
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._ended.set()

    def _hand_over(self) -> None:
        """Reports follow what the trace has of them."""
        self._recordings.flush()
        threads, journal = self._threads, self._journal
        if threads is not None:
            self._statistics = Statistics(
                ticks=journal.ticks,
                in_flight=threads.speaking - threads.waiting,
                open_threads=len(threads),
                waiting=threads.waiting,
                **msgspec.structs.asdict(journal.work),
            )
        reports = journal.take_reports()
        if not reports or self._deliver is None:
            return
        if journal.recorder is None:
            self._deliver(reports)
        else:
            journal.recorder.afterwards(partial(self._deliver_written, reports), is_urgent=True)

    def _deliver_written(self, reports: list[Report]) -> None:
        assert self._deliver is not None
        self._deliver(reports)
