"""The device thread: takes commands, runs tick after tick, delivers reports.

    commands --+                                 +--> reports of the tick, in one hop
               v                                 |
    [ drain -> plan -> build -> backend.tick -> commit ] repeated while there is work, else waiting for a command

The event loop is never waited for: between two ticks the thread only looks whether commands have come.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue

import msgspec
import numpy as np
import torch

from runtime.backend.interface import MOST_TICKS, Backend, TickResult, TickTimes
from runtime.console.logs import logger
from runtime.device.journal import Journal, Recorder
from runtime.device.recordings import Recordings
from runtime.device.requests import Requests
from runtime.device.scheduler import Scheduler
from runtime.device.threads import OpenThreads
from runtime.device.tick_meter import TickMeter
from runtime.errors import EngineFailed
from runtime.link.blocks import MICROSECONDS
from runtime.link.columns import steps
from runtime.link.commands import (
    CloseThread,
    Command,
    Deliver,
    DeviceFailed,
    Extend,
    Failed,
    FlushRecording,
    Generate,
    Interrupt,
    Merge,
    OpenThread,
    Record,
    Report,
    Request,
    Statistics,
    ThreadPath,
)
from runtime.link.notes import TickNotes

_log = logger("runtime.device")


PATIENCE = 0.001
"""Seconds that a call of the backend may take where it does several ticks: commands wait so long."""


STREAM_PATIENCE = 0.01
"""Seconds that tokens may wait to be streamed while their lane goes on by itself."""
STREAM_SHARE = 0.001
"""The same for each of the streams, as telling one of its tokens takes some tens of microseconds."""


class DeviceLoop:
    """Commands in, ticks, reports out; no thread of its own, so that tests can step it."""

    def __init__(
        self,
        backend: Backend,
        journal: Journal,
        scheduler: Scheduler,
        threads: OpenThreads,
        requests: Requests,
        recordings: Recordings,
        observe: Callable[[Scheduler, TickResult], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`observe` sees every tick's result before it is committed; the scheduler must then be a stepwise one.
        `clock` gives seconds, by which calls of the backend are timed."""
        self.backend = backend
        self.journal = journal
        self.scheduler = scheduler
        self.threads = threads
        self._requests = requests
        self._recordings = recordings
        self._observe = observe
        self._clock = clock
        self._most_ticks = 1
        self._meter = TickMeter()
        self._told = 0.0
        """When streams were last told of what lanes sampled by themselves."""
        self._streams = 0
        """How many there were."""

    def handle(self, command: Command | Request) -> None:
        """Executes one command. Only that for other weights touches a tensor. What it raises unexpectedly ends the
        thread it names."""
        self._recordings.look()
        try:
            self._execute(command)
        except BaseException as cause:
            thread: ThreadPath | None = getattr(command, "thread", None)
            if thread is None:
                raise
            self.threads.fail_unforeseen(thread, cause)

    def _execute(self, command: Command | Request) -> None:
        match command:
            case OpenThread() | Generate() if self.failure is not None:
                self.journal.reports.append(Failed(command.thread, _is_ending(self.failure)))
            case OpenThread():
                self.threads.open(command)
            case Extend():
                self.threads.extend(command)
            case Merge():
                self.threads.merge(command)
            case Generate():
                self.threads.generate(command)
            case Interrupt():
                self.threads.interrupt(command)
            case CloseThread():
                self.threads.close(command)
            case Record(event):
                self.journal.record_as_is(event)
            case _:
                self._requests.handle(command)

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    @property
    def failure(self) -> Exception | None:
        """What the device is to end of when nothing is left to do; no thread is opened or generates any more."""
        return self._recordings.failure

    def flush(self) -> Recorder | None:
        """Hands what was noted to the trace, whose recorder this gives, if there is one."""
        self._recordings.flush()
        return self.journal.recorder

    def close(self, *, is_whole: bool = True) -> None:
        """Ends what the backend runs, and the recording that was not ended; no step may follow.

        The trace gets an end mark if what happened `is_whole`: not if the device has failed."""
        try:
            self._recordings.close(is_whole=is_whole)
        finally:
            self.scheduler.close()
            self.threads.end()
            self.backend.close()

    def step(self) -> None:
        """One tick, or several in which nothing is to be decided.

        A tick that does not fit the device's memory is retried with fewer entering tokens."""
        groups = self.scheduler.plan()
        latents = self.journal.latents
        watched = [] if latents is None else latents.flights(self.scheduler.in_flight.threads())
        # States can be looked at between calls alone; lanes that nobody looks at go on by themselves all the same.
        stepwise = self.scheduler.is_stepwise or bool(watched)
        started = self._clock()
        while True:
            tick = self.scheduler.build(groups, 1 if stepwise else self._most_ticks)
            try:
                result = self.backend.tick(tick)
                break
            except torch.OutOfMemoryError:
                if not groups:
                    raise
                kept = self.scheduler.retract(groups)
                _log.warning("tick_out_of_memory", entering=len(groups), retried_with=len(kept))
                groups = kept
                watched = [] if latents is None else latents.flights(self.scheduler.in_flight.threads())
        seconds = self._clock() - started
        self._meter.add(result.ticks, result.iterations, seconds)
        if not stepwise and seconds > 0:
            self._most_ticks = max(1, min(MOST_TICKS, int(PATIENCE * result.ticks / seconds)))
        if latents is not None and watched:
            latents.observe(watched, self.backend.latents)
        if self._observe is not None:
            self._observe(self.scheduler, result)
        ended = self.journal.microseconds()
        self.scheduler.commit(result)
        if self.journal.recorder is not None:
            self._record_ticks(len(tick.entering.lane), result, ended, int(seconds * MICROSECONDS))
        if started - self._told > max(STREAM_PATIENCE, STREAM_SHARE * self._streams):
            self._streams = self.scheduler.tell_streams()
            self._told = started

    def _record_ticks(self, entered: int, result: TickResult, ended: int, took: int) -> None:
        """Notes what a call of the backend did that took so long, in microseconds.

        The time that passed before and after its ticks counts to the last one; without a clock of the backend's own,
        all ticks took as long."""
        ticks, times = result.ticks, result.times
        if times is None:
            after = np.array([took])
            counts = (np.array([count]) for count in (entered, result.in_flight, len(result.lane)))
            each = TickTimes(after.astype(np.float64), *counts)
        else:
            ends = times.end if times.end[-1] else np.arange(1, ticks + 1) * (took / MICROSECONDS / ticks)
            after = np.minimum((ends * MICROSECONDS).astype(np.int64), took)
            after[-1] = took
            each = times
        waiting, pages_used = self.scheduler.waiting, self.scheduler.kv_cache.pool.used
        notes = TickNotes(
            end=after + (ended - took),
            took=steps(after),
            entered=each.entered,
            in_flight=each.in_flight,
            left=each.left,
            waiting=np.full(ticks, waiting),
            pages_used=np.full(ticks, pages_used),
        )
        self.journal.record_ticks(notes)

    def statistics(self) -> Statistics:
        """What the device is doing right now, and has done."""
        journal, pool = self.journal, self.scheduler.kv_cache.pool
        return Statistics(
            ticks=journal.ticks,
            in_flight=self.scheduler.tokens_in_flight,
            open_threads=len(self.threads),
            waiting=self.scheduler.waiting,
            pages_used=pool.used,
            num_pages=pool.size,
            tick_costs=self._meter.costs,
            **msgspec.structs.asdict(journal.work),
        )

    def check_integrity(self) -> None:
        """Raises `AssertionError` if pages, rows or lanes are lost, shared by mistake, or counted wrong."""
        self.scheduler.check_integrity(self.threads)


def _is_ending(cause: Exception) -> EngineFailed:
    error = EngineFailed(f"The engine ends with the generates that are running, since its trace cannot go on: {cause}")
    error.__cause__ = cause
    return error


class ModelDevice:
    """A `Device` that runs a model: a `DeviceLoop` on a thread of its own."""

    def __init__(self, open_loop: Callable[[], DeviceLoop], torch_threads: int | None = None) -> None:
        """`open_loop` is called on the device thread, which owns everything it makes. `torch_threads` is how many
        threads PyTorch may use for it; None leaves that alone."""
        self._open_loop = open_loop
        self._torch_threads = torch_threads
        self._callers_threads = torch.get_num_threads()
        self._commands: SimpleQueue[Command | Request | None] = SimpleQueue()
        self._stopped = threading.Event()
        self._statistics = Statistics()
        self._thread: threading.Thread | None = None
        self._opened: Future[None] = Future()

    def start(self, deliver: Deliver) -> None:
        self._callers_threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, args=(deliver,), name="braid-device", daemon=True)
        self._thread.start()

    def send(self, command: Command | Request) -> None:
        if not self._stopped.is_set():
            self._commands.put(command)

    def stop(self) -> None:
        self._stopped.set()
        self._commands.put(None)
        if self._thread is not None:
            self._thread.join()

    def wait_until_open(self) -> None:
        """Blocks until the device that was started serves commands; raises what keeps it from that."""
        self._opened.result()

    @property
    def first_tree(self) -> int:
        return 0

    @property
    def statistics(self) -> Statistics:
        return self._statistics

    def _run(self, deliver: Deliver) -> None:
        try:
            if self._torch_threads is not None:
                # For this thread, and for threads that others begin from here on: hence set back at the end.
                torch.set_num_threads(self._torch_threads)
            try:
                loop = self._open_loop()
                is_whole = False
                try:
                    self._opened.set_result(None)
                    self._serve(loop, deliver)
                    is_whole = True
                finally:
                    loop.close(is_whole=is_whole)
                    if reports := loop.journal.take_reports():
                        deliver(reports)
            finally:
                if self._torch_threads is not None:
                    torch.set_num_threads(self._callers_threads)
        except BaseException as error:
            self._stopped.set()
            self._statistics = msgspec.structs.replace(
                self._statistics, in_flight=0, open_threads=0, waiting=0, pages_used=0
            )
            if not self._opened.done():
                self._opened.set_exception(error)
            _log.error("device_failed", error=repr(error))
            deliver([DeviceFailed(error)])

    def _serve(self, loop: DeviceLoop, deliver: Deliver) -> None:
        while self._take_commands(loop):
            if loop.journal.reports:
                # What commands gave does not wait for the tick.
                self._hand_over(loop, deliver)
            if loop.has_work:
                loop.step()
            self._hand_over(loop, deliver)
            if loop.failure is not None and not loop.has_work:
                raise loop.failure
        loop.flush()
        self._statistics = loop.statistics()

    def _hand_over(self, loop: DeviceLoop, deliver: Deliver) -> None:
        """Reports follow what the trace has of them."""
        recorder = loop.flush()
        self._statistics = loop.statistics()
        reports = loop.journal.take_reports()
        if not reports:
            return
        if recorder is None:
            deliver(reports)
        else:
            written = partial(self._deliver_written, recorder, deliver, reports)
            recorder.afterwards(written, is_urgent=not loop.has_work)

    def _deliver_written(self, recorder: Recorder, deliver: Deliver, reports: list[Report]) -> None:
        deliver(reports)
        if recorder.failure is not None:
            # The device may have nothing to do, and is to take notice.
            self._commands.put(FlushRecording(number=0))

    def _take_commands(self, loop: DeviceLoop) -> bool:
        """Handles the commands that have come, waiting for one if there is no work; False at the end."""
        while not loop.has_work or not self._commands.empty():
            command = self._commands.get()
            if command is None:
                return False
            loop.handle(command)
            if self._commands.empty():
                return True
        return True
