"""A device that needs no model: it answers a program with what was recorded. In which order, `traces.order` says."""

from __future__ import annotations

import math
import threading
import time
from collections import deque

from runtime import TraceError
from runtime.link import Answered, Command, Deliver, DeviceFailed, Merge, Report, Request, Statistics, TickDone, Trace
from traces.order import RecordedOrder


class Playback:
    """A `Device` that plays a trace back on a thread of its own; events sent to be recorded are dropped.

    A program that sends the commands it sent before gets the same reports in the same order; its trees are numbered
    from the first recorded one on. Requests are refused. `statistics` counts what of the recording has been played.
    Raises `TraceError` for a trace whose events do not fit together.
    """

    def __init__(self, trace: Trace, *, patience: float = 2.0) -> None:
        """`patience`, seconds, is how long a report waits for a command that comes later than in the recording."""
        self._order = RecordedOrder(trace, patience)
        self._began = 0.0
        self._commands: deque[Command | Request] = deque()
        paths = (event.thread for event in trace.events if not isinstance(event, TickDone))
        self._first_tree = min((path[0] for path in paths), default=0)
        self._changed = threading.Condition()
        self._stopped = False
        self._worker: threading.Thread | None = None

    def start(self, deliver: Deliver) -> None:
        self._began = time.monotonic()
        self._worker = threading.Thread(target=self._run, args=(deliver,), name="braid-playback", daemon=True)
        self._worker.start()

    def send(self, command: Command | Request) -> None:
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
    def first_tree(self) -> int:
        return self._first_tree

    @property
    def statistics(self) -> Statistics:
        return self._order.statistics

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
                    if isinstance(command, Request):
                        reports.append(Answered(command.number, _refusal()))
                    else:
                        self._order.handle(command, reports, self._now())
                        if isinstance(command, Merge):
                            reports.append(Answered(command.number))
                if reports:
                    deliver(reports)
        except BaseException as error:
            self._stopped = True
            deliver([DeviceFailed(error)])

    def _now(self) -> float:
        return time.monotonic() - self._began


def _refusal() -> TraceError:
    return TraceError(
        "This engine plays a trace back: it has no weights to replace, and nothing to record. Open the checkpoint."
    )
