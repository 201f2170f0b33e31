"""A device that needs no model: it answers a program with what was recorded. In which order, `traces.order` says."""

from __future__ import annotations

import math
import threading
import time
from collections import deque

from runtime.commands import Command, Deliver, DeviceFailed, Load, Report
from traces.order import RecordedOrder
from traces.reader import Trace


class Playback:
    """A `Device` that plays a trace back on a thread of its own; events sent to be recorded are dropped.

    A program that sends the commands it sent before gets the same reports in the same order. `load` counts what of
    the recording has been played. Raises `TraceError` for a trace whose events do not fit together.
    """

    def __init__(self, trace: Trace, *, patience: float = 2.0) -> None:
        """`patience`, seconds, is how long a report waits for a command that comes later than in the recording."""
        self._order = RecordedOrder(trace, patience)
        self._began = 0.0
        self._commands: deque[Command] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._worker: threading.Thread | None = None

    def start(self, deliver: Deliver) -> None:
        self._began = time.monotonic()
        self._worker = threading.Thread(target=self._run, args=(deliver,), name="braid-playback", daemon=True)
        self._worker.start()

    def send(self, command: Command) -> None:
        with self._changed:
            if not self._stopped:
                self._commands.append(command)
                self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._worker is not None:
            self._worker.join()

    @property
    def load(self) -> Load:
        return self._order.load

    def _run(self, deliver: Deliver) -> None:
        try:
            while True:
                reports: list[Report] = []
                wait = self._order.play(reports, self._now())
                if reports:
                    deliver(reports)
                with self._changed:
                    if wait > 0 and not self._stopped and not self._commands:
                        self._changed.wait(None if math.isinf(wait) else wait)
                    if self._stopped:
                        return
                    commands, self._commands = self._commands, deque()
                reports = []
                for command in commands:
                    self._order.handle(command, reports, self._now())
                if reports:
                    deliver(reports)
        except BaseException as error:
            self._stopped = True
            deliver([DeviceFailed(error)])

    def _now(self) -> float:
        return time.monotonic() - self._began
