"""Recording beside the device: what it notes is encoded, compressed and written by a thread of its own.

    device: take(notes), afterwards(action) -> [ everything that has come: one record -> the file -> actions ]

While one record is written, notes gather for the next. Where nobody waits, the thread lets some gather first.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from runtime.link import Header, Notes
from traces.writer import TraceWriter

PATIENCE = 0.1
"""Seconds that notes wait for more of them where nobody waits for them."""

ENOUGH = 4096
"""Rows that are written without waiting for more."""

MOST_UNWRITTEN = 200_000
"""Rows, some ten to twenty megabytes, beyond which the device waits for the disk."""


class TraceRecorder:
    """A trace file, and the thread that writes it. Its methods are called by one other thread.

    Raises `TraceError` as `TraceWriter` does.
    """

    def __init__(self, path: str | os.PathLike[str], header: Header, *, overwrite: bool = False) -> None:
        self._writer = TraceWriter(path, header, overwrite=overwrite)
        self._started = time.monotonic()
        self._changed = threading.Condition()
        self._notes = Notes()
        self._writing = 0
        """Rows that are being written."""
        self._actions: list[Callable[[], None]] = []
        self._is_ending = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="braid-trace", daemon=True)
        self._thread.start()

    def now(self) -> float:
        """Seconds since recording began, from a monotonic clock: what events carry as `time`."""
        return time.monotonic() - self._started

    @property
    def failure(self) -> Exception | None:
        """What the recording has ended of, if anything was lost."""
        return self._failure

    def take(self, notes: Notes) -> None:
        """Has notes written soon; waits while too much is unwritten. After a failure they are dropped."""
        with self._changed:
            while self._notes.size + self._writing > MOST_UNWRITTEN and self._failure is None:
                self._changed.wait()
            if self._failure is None:
                was_empty = not self._notes.size
                self._notes.extend(notes)
                if was_empty or self._notes.size >= ENOUGH:
                    self._changed.notify_all()

    def afterwards(self, action: Callable[[], None]) -> None:
        """Has something done, on the writing thread, when all that was taken is written or lost; in order."""
        with self._changed:
            self._actions.append(action)
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the trace, when everything is written and done. Raises what it has ended of, or ends of."""
        self._end()
        if self._failure is not None:
            self._writer.abandon()
            raise self._failure
        self._writer.close()

    def abandon(self) -> None:
        """The same without an end mark; more happened than is in the trace. Raises nothing."""
        self._end()
        self._writer.abandon()

    def _end(self) -> None:
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._actions or self._is_ending or self._notes.size >= ENOUGH):
                    if not self._changed.wait(PATIENCE if self._notes.size else None) and self._notes.size:
                        break
                notes, self._notes = self._notes, Notes()
                actions, self._actions = self._actions, []
                self._writing = notes.size
                if self._is_ending and not notes.size and not actions:
                    return
            self._write(notes)
            for action in actions:
                action()
            with self._changed:
                self._writing = 0
                self._changed.notify_all()

    def _write(self, notes: Notes) -> None:
        if not notes.size or self._failure is not None:
            return
        try:
            self._writer.write_notes(notes)
        except Exception as error:
            self._failure = error
