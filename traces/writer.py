"""Writing a trace: magic, then framed records, each handed to the operating system as it is written.

    file    = magic ("braid-trace " and the format number, four digits) , record(header) , record(block)* , end mark
    record  = length (uint32 LE) , crc32 of length and payload (uint32 LE) , payload
    payload = msgpack of the header, of a block or of one event, or a Zstandard frame of that, where the header says so
    end     = a record of length 0, written by `close` where nothing was lost

The checksum covers the length too, so that a tail of zeros left by a crashed file system is not taken for records. The
header is the dictionary of all frames, because what threads are opened with and asked for is mostly in it.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import zstandard

from runtime import TraceError
from runtime.link import FORMAT, LARGEST_RECORD, Block, Event, Header, Notes
from traces.file import TraceFile, reason_of

MAGIC = b"braid-trace %04d" % FORMAT
FRAME = struct.Struct("<II")
LEVEL = 3
MOST_EXPANSION = 16
"""Most bytes that a byte of a record may stand for, so that a small file cannot take much memory; zeros follow a frame
that is smaller."""
END_MARK = FRAME.pack(0, zlib.crc32(bytes(4)))


class TraceWriter:
    """Appends events to a new trace file, which is locked against other writers; owned by one thread.

    Nothing is held back in memory: `write` and `write_many` return when the operating system has the records, so that
    a process killed at any moment loses at most the records of the call it was in, of which the reader recovers every
    whole one. `flush` also survives the machine.

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
        self._compressor: zstandard.ZstdCompressor | None = None
        first = MAGIC + self._framed(header)
        if header.compression == "zstd":
            self._compressor = zstandard.ZstdCompressor(level=LEVEL, dict_data=dictionary_of(self._encoded(header)))
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

    def write_notes(self, notes: Notes) -> None:
        """Appends what was noted as one record. What precedes an event that cannot be encoded is written."""
        file = self._open_file()
        failure: TraceError | None = None
        try:
            frame = self._framed(notes.block())
        except TraceError:
            number, failure = self._first_refused(notes.events)
            frame = self._framed(notes.block(number))
        try:
            file.append(frame)
        except OSError as error:
            raise self._lost(reason_of(error)) from error
        self._written += len(notes.events)
        if failure is not None:
            raise self._lost(str(failure)) from failure

    def write(self, event: Event) -> None:
        """Appends one event."""
        self.write_many((event,))

    def write_many(self, events: Iterable[Event]) -> None:
        """Appends events in their order with one system call; nothing is written for no events.

        Those before one that cannot be encoded are written.
        """
        if self._compressor is not None:
            # One alone has little to be compressed with.
            notes = Notes()
            for event in events:
                notes.add(event)
            if notes.events:
                self.write_notes(notes)
            return
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

    def _first_refused(self, events: Sequence[Event]) -> tuple[int, TraceError]:
        """The first event that cannot be written, and why."""
        for number, event in enumerate(events):
            try:
                self._encoded(event)
            except TraceError as error:
                return number, error
        return 0, TraceError(f"{len(events)} events together have more bytes than a trace record holds.")

    def _framed(self, content: Block | Event | Header) -> bytes:
        payload = self._encoded(content)
        if self._compressor is not None:
            smaller = self._compressor.compress(payload).ljust(-(-len(payload) // MOST_EXPANSION), b"\0")
            if len(smaller) < len(payload):
                payload = smaller
        length = len(payload).to_bytes(4, "little")
        return FRAME.pack(len(payload), zlib.crc32(payload, zlib.crc32(length))) + payload

    def _encoded(self, content: Block | Event | Header) -> bytes:
        try:
            payload = self._encoder.encode(content)
        except Exception as error:  # of the values' own encoders too
            raise TraceError(f"{type(content).__name__} cannot be encoded: {error}.") from error
        if len(payload) > LARGEST_RECORD:
            raise TraceError(
                f"{type(content).__name__} has {len(payload)} bytes; a trace record holds at most {LARGEST_RECORD}."
            )
        return payload


def dictionary_of(header: bytes) -> zstandard.ZstdCompressionDict:
    """What frames refer to, besides themselves: the header's payload."""
    return zstandard.ZstdCompressionDict(header, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
