"""Devices without a model: their tokens come from a function, so that tests decide what every thread says.

`ScriptedDevice` runs on a thread of its own; `SteppedDevice` has none and ticks when the test says so. Both check
that they are used as `runtime.link.commands` documents: what breaks the contract ends the device.
"""

from __future__ import annotations

import threading
from queue import SimpleQueue

from runtime.link.commands import (
    CloseThread,
    Command,
    Deliver,
    DeviceFailed,
    FlushRecording,
    Report,
    Request,
    Statistics,
)
from tests.runtime_loop.scripted_core import Say, ScriptedCore


class SteppedDevice:
    """Ticks when told to, on the caller's thread, so that a test drives every interleaving.

    Threads are closed as soon as they are told to, so that a test that fails half-way ends; `closes_late` waits for
    the next step like a real device.
    """

    def __init__(self, say: Say, context: int = 10**9, closes_late: bool = False) -> None:
        self._closes_late = closes_late
        self.core = ScriptedCore(say, context)
        self.sent: list[Command | Request] = []
        self._queue: list[Command | Request] = []
        self._deliver: Deliver | None = None
        self.is_stopped = False

    def start(self, deliver: Deliver) -> None:
        self._deliver = deliver

    def send(self, command: Command | Request) -> None:
        if not self.is_stopped:
            self.sent.append(command)
            self._queue.append(command)
            if isinstance(command, FlushRecording) or (isinstance(command, CloseThread) and not self._closes_late):
                self.take_commands()
                self.flush()

    def stop(self) -> None:
        self.take_commands()
        self.is_stopped = True

    first_tree = 0

    @property
    def statistics(self) -> Statistics:
        return self.core.statistics()

    def take_commands(self) -> None:
        """Handles what was sent, without a tick."""
        queue, self._queue = self._queue, []
        for command in queue:
            self.core.handle(command)

    def step(self, ticks: int = 1) -> None:
        """Handles what was sent, ticks, and delivers."""
        self.take_commands()
        for _ in range(ticks):
            self.core.tick()
        self.flush()

    def flush(self) -> None:
        """Delivers what is due."""
        reports = self.core.take_reports()
        if reports:
            self.give(reports)

    def give(self, reports: list[Report]) -> None:
        assert self._deliver is not None
        self._deliver(reports)

    def fail(self, error: BaseException) -> None:
        self.give([DeviceFailed(error)])


class ScriptedDevice:
    """Ticks on a thread of its own whenever there is work."""

    def __init__(self, say: Say, context: int = 10**9) -> None:
        self.core = ScriptedCore(say, context)
        self.sent: list[Command | Request] = []
        self._commands: SimpleQueue[Command | Request | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_stopped = False

    def start(self, deliver: Deliver) -> None:
        self._thread = threading.Thread(target=self._run, args=(deliver,), daemon=True)
        self._thread.start()

    def send(self, command: Command | Request) -> None:
        if not self._is_stopped:
            self.sent.append(command)
            self._commands.put(command)

    def stop(self) -> None:
        self._is_stopped = True
        self._commands.put(None)
        if self._thread is not None:
            self._thread.join()

    first_tree = 0

    @property
    def statistics(self) -> Statistics:
        return self.core.statistics()

    def _run(self, deliver: Deliver) -> None:
        core = self.core
        try:
            while True:
                while not self._commands.empty() or not (core.has_work or core.reports):
                    command = self._commands.get()
                    if command is None:
                        return
                    core.handle(command)
                if core.has_work:
                    core.tick()
                reports = core.take_reports()
                if reports:
                    deliver(reports)
        except BaseException as error:
            deliver([DeviceFailed(error)])
