"""Recording beside the device: what it notes is encoded, compressed and written by a thread of its own.

    device: take(notes), afterwards(action) -> [ everything that has come: one record -> the file -> actions ]

While one record is written, notes gather for the next. Where nobody waits, the thread lets some gather first; and so it
does where the device goes on meanwhile, so that writing takes a small share of the processor.
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


SHARE = 10
"""Times as long as the last record took to write, at least, before the next where the device goes on."""

LONGEST_PAUSE = 0.005
"""Seconds that a report may wait for that."""


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
        self._resting_until = 0.0
        """When the next record may be written while the device goes on; by `time.monotonic`."""
        self._is_resting = False
        """Whether the thread waits for that, and is not to be woken by what can wait too."""
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
                self._notes.extend(notes)
                # Waking a thread costs the device more than all this.
                if self._notes.size >= ENOUGH:
                    self._changed.notify_all()

    def afterwards(self, action: Callable[[], None], *, is_urgent: bool) -> None:
        """Has something done, on the writing thread, when all that was taken is written or lost; in order.

        It `is_urgent` where the device has nothing else to do; otherwise it may wait for some milliseconds."""
        with self._changed:
            self._actions.append(action)
            if is_urgent:
                self._resting_until = 0.0
            if is_urgent or not self._is_resting:
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
                self._gather()
                notes, self._notes = self._notes, Notes()
                actions, self._actions = self._actions, []
                self._writing = notes.size
                if self._is_ending and not notes.size and not actions:
                    return
            began = time.monotonic()
            self._write(notes)
            for action in actions:
                action()
            ended = time.monotonic()
            self._resting_until = ended + min(LONGEST_PAUSE, SHARE * (ended - began))
            with self._changed:
                self._writing = 0
                self._changed.notify_all()

    def _gather(self) -> None:
        """Waits until something is to be written; the lock is held."""
        while not (self._actions or self._is_ending or self._notes.size >= ENOUGH):
            if not self._changed.wait(PATIENCE) and self._notes.size:
                break
        self._is_resting = True
        while not self._is_ending and self._notes.size < ENOUGH:
            left = self._resting_until - time.monotonic()
            if left <= 0:
                break
            self._changed.wait(left)
        self._is_resting = False

    def _write(self, notes: Notes) -> None:
        if not notes.size or self._failure is not None:
            return
        try:
            self._writer.write_notes(notes)
        except Exception as error:
            self._failure = error
