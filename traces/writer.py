"""Writing a trace: magic, then framed records, each handed to the operating system as it is written.

    file    = magic (16 bytes: "braid-trace " and the format number) , record(header) , record(event)* , end mark
    record  = length (uint32 LE) , crc32 of length and payload (uint32 LE) , payload (msgpack)
    end     = a record of length 0, written by `close` where nothing was lost

The checksum covers the length too, so that a tail of zeros left by a crashed file system is not taken for records.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from runtime import TraceError
from runtime.link import FORMAT, LARGEST_RECORD, Event, Header
from traces.file import TraceFile, reason_of

MAGIC = b"braid-trace %04d" % FORMAT
FRAME = struct.Struct("<II")
END_MARK = FRAME.pack(0, zlib.crc32(bytes(4)))


class TraceWriter:
    """Appends events to a new trace file, which is locked against other writers; owned by one thread.

    Nothing is held back in memory: `write` and `write_many` return when the operating system has the records, so that
    a process killed at any moment loses at most the records of the call it was in, of which the reader recovers every
    whole one. That costs one system call a call: about 3 us for `write`, and 0.8 us an event for `write_many` with a
    tick's 32 events; writers of many events should use `write_many` once a tick. `flush` also survives the
    machine.

    Raises `TraceError` where the file cannot be had (see `TraceFile`), and where an event cannot be encoded or written,
    as on a full disk. With the first event that is lost the trace ends: what came before is in the file, nothing more
    is taken, and `close` writes no end mark.
    """

    def __init__(self, path: str | os.PathLike[str], header: Header, *, overwrite: bool = False) -> None:
        if header.format != FORMAT:
            raise TraceError(f"This writer writes trace format {FORMAT}; the header says {header.format}.")
        self.path = Path(path)
        self._encoder = msgspec.msgpack.Encoder()
        self._started = time.monotonic()
        self._frames = bytearray()
        self._written = 0
        self._failure: str | None = None
        first = MAGIC + self._framed(header)
        self._file: TraceFile | None = TraceFile(self.path, overwrite=overwrite)
        try:
            self._file.append(first)
        except BaseException as error:
            self.abandon()
            if isinstance(error, OSError):
                raise TraceError(f"Cannot write a trace to {self.path}: {reason_of(error)}.") from error
            raise

    def now(self) -> float:
        """Seconds since the writer was made, from a monotonic clock: what events carry as `time`."""
        return time.monotonic() - self._started

    def write(self, event: Event) -> None:
        """Appends one event."""
        self.write_many((event,))

    def write_many(self, events: Iterable[Event]) -> None:
        """Appends events in their order with one system call; nothing is written for no events.

        Those before one that cannot be encoded are written.
        """
        file = self._open_file()
        frames, count = self._frames, 0
        frames.clear()
        failure: TraceError | None = None
        for event in events:
            try:
                frames += self._framed(event)
            except TraceError as error:
                failure = error
                break
            count += 1
        if frames:
            try:
                file.append(frames)
            except OSError as error:
                raise self._lost(reason_of(error)) from error
        self._written += count
        if failure is not None:
            raise self._lost(str(failure)) from failure

    def flush(self) -> None:
        """Returns when the disk has everything written so far, so that it survives the machine too.

        Raises `TraceError` where that cannot be said; the trace has ended then, as where an event is lost.
        """
        try:
            self._open_file().sync()
        except OSError as error:
            raise self._lost(reason_of(error)) from error

    def close(self) -> None:
        """Writes the end mark, by which a reader knows that nothing is missing; where something is, it does not.

        Closing again does nothing. Raises `TraceError` where the mark cannot be written or the system cannot say that
        everything is; the file is closed all the same.
        """
        file, self._file = self._file, None
        if file is None:
            return
        try:
            try:
                if self._failure is None:
                    file.append(END_MARK)
            finally:
                file.close()
        except OSError as error:
            raise TraceError(f"Cannot end the trace {self.path} properly: {reason_of(error)}.") from error

    def abandon(self) -> None:
        """Closes the file without an end mark: more happened, or was to happen, than is in it. Raises nothing."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def _open_file(self) -> TraceFile:
        if self._failure is not None:
            raise TraceError(self._ended())
        if self._file is None:
            raise TraceError(f"The trace {self.path} is closed; events can no longer be written to it.")
        return self._file

    def _lost(self, why: str) -> TraceError:
        """Ends the trace."""
        self._failure = why
        return TraceError(self._ended())

    def _ended(self) -> str:
        return (
            f"Cannot write on to the trace {self.path}: {(self._failure or '').rstrip('.')}. What was written before "
            f"can be read, at least {self._written} events; what comes after is lost."
        )

    def _framed(self, content: Event | Header) -> bytes:
        try:
            payload = self._encoder.encode(content)
        except Exception as error:  # of the values' own encoders too
            raise TraceError(f"{type(content).__name__} cannot be encoded: {error}.") from error
        if len(payload) > LARGEST_RECORD:
            raise TraceError(
                f"{type(content).__name__} has {len(payload)} bytes; a trace record holds at most {LARGEST_RECORD}."
            )
        length = len(payload).to_bytes(4, "little")
        return FRAME.pack(len(payload), zlib.crc32(payload, zlib.crc32(length))) + payload
