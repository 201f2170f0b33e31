"""Reading a trace, whole or cut off: every record up to the first one that is incomplete or damaged."""

from __future__ import annotations

import os
import re
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec
import zstandard

from runtime import TraceError
from runtime.link import (
    FORMAT,
    LARGEST_RECORD,
    AnyEvent,
    Block,
    Header,
    TickClock,
    Trace,
    check_plain,
    events_of,
)
from traces.file import is_locked, reason_of
from traces.writer import FRAME, MAGIC, MOST_EXPANSION, dictionary_of

NOT_UNDERSTOOD = (msgspec.DecodeError, ValueError, RecursionError, zstandard.ZstdError)


class TraceReader:
    """Iterates over the events of a trace file without holding them; a context manager.

    `header` is read at once. `lost` is known when the iteration is over: None, or what is missing at the end. A file
    that its writer has not closed (killed, or still writing) reads up to its last whole record; iterating again goes on
    from there, with what has been written since.

    Raises `TraceError` for a file that is missing, is no regular one, is no trace, has a damaged header, or was written
    in another format; while iterating, for an intact record that this version does not know or that no engine writes;
    and for a disk that fails. Time and memory are linear in the file's size.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        self.lost: str | None = None
        self._decoder = msgspec.msgpack.Decoder(AnyEvent | Block)
        self._clock = TickClock()
        self._decompressor: zstandard.ZstdDecompressor | None = None
        try:
            self._file: BinaryIO = open(self.path, "rb", opener=_opener)  # noqa: SIM115 - closed by close()
        except (OSError, ValueError) as error:
            raise TraceError(f"Cannot read the trace {self.path}: {reason_of(error)}.") from error
        self._at = len(MAGIC)
        self._size = 0
        try:
            self.header = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    @property
    def may_grow(self) -> bool:
        """Whether somebody has the file locked, as its writer does until it has ended, however it ends.

        True where files cannot be locked, so that nobody can tell."""
        return is_locked(self._file.fileno())

    def __iter__(self) -> Iterator[AnyEvent]:
        number = 1
        self.lost = None
        self._file.seek(self._at)
        while (payload := self._record(number)) is not None:
            try:
                content = self._decoder.decode(self._plain(payload))
                for event in content.events if isinstance(content, Block) else (content,):
                    check_plain(event)
                events = events_of(content, self._clock) if isinstance(content, Block) else iter((content,))
            except NOT_UNDERSTOOD as error:
                raise TraceError(
                    f"{self.path}: record {number} is intact but holds no events that this version knows ({error}); it "
                    "was written by a newer or a changed Braid. Read it with the version that wrote it."
                ) from error
            yield from events
            number += 1

    def _plain(self, payload: bytes) -> bytes:
        """What a record holds. Raises `ValueError` and `zstandard.ZstdError` for a frame that is none."""
        if self._decompressor is None or not payload.startswith(zstandard.FRAME_HEADER):
            return payload
        size = zstandard.frame_content_size(payload)
        if not 0 <= size <= min(LARGEST_RECORD, MOST_EXPANSION * len(payload)):
            raise ValueError(f"{len(payload)} compressed bytes say that they are {size}")
        return self._decompressor.decompress(payload, max_output_size=size)

    def _read(self, length: int) -> bytes:
        try:
            return self._file.read(length)
        except OSError as error:
            raise TraceError(f"Cannot read the trace {self.path}: {reason_of(error)}.") from error

    def _read_header(self) -> Header:
        magic = self._read(len(MAGIC))
        if len(magic) < len(MAGIC) and MAGIC.startswith(magic):
            raise TraceError(f"{self.path} has {len(magic)} bytes: not even the first {len(MAGIC)} of a trace.")
        match = re.fullmatch(rb"braid-trace (\d{4})", magic)
        if match is None:
            raise TraceError(f"{self.path} is not a Braid trace: it does not begin with {MAGIC.decode()!r}.")
        if (version := int(match[1])) != FORMAT:
            raise TraceError(
                f"{self.path} has trace format {version}; this version reads format {FORMAT}. "
                "Read it with the version that wrote it."
            )
        payload = self._record(0)
        if payload is None:
            raise TraceError(f"{self.path}: the header cannot be read, and nothing without it ({self.lost}).")
        try:
            header = msgspec.msgpack.decode(payload, type=Header)
            check_plain(header)
        except NOT_UNDERSTOOD as error:
            raise TraceError(f"{self.path}: the header is intact but not understood ({error}).") from error
        if header.format != FORMAT:
            raise TraceError(f"{self.path}: the header says format {header.format}; this version reads {FORMAT}.")
        if header.compression == "zstd":
            self._decompressor = zstandard.ZstdDecompressor(dict_data=dictionary_of(payload))
        return header

    def _record(self, number: int) -> bytes | None:
        """The next payload; None at the end, with `lost` saying why unless the end mark was found there."""
        start = self._at
        frame = self._read(FRAME.size)
        if not frame:
            self.lost = (
                f"the trace ends without its end mark at byte {start}, after {max(number - 1, 0)} records: its writer "
                "was killed or is still writing, or its engine failed, or it could not write on"
            )
            return None
        if len(frame) < FRAME.size:
            size = start + len(frame)
            self.lost = f"truncated at byte {size}: {len(frame)} bytes of record {number} (from byte {start}) remain"
            return None
        length, checksum = FRAME.unpack(frame)
        end = start + FRAME.size + length
        if end > self._size:
            # Asked again, since the writer may still be writing; and asked before reading, since a damaged length
            # could ask for gigabytes.
            self._size = os.fstat(self._file.fileno()).st_size
        if end > self._size:
            self.lost = (
                f"truncated at byte {self._size}: record {number} (from byte {start}) says it has {length} bytes and "
                f"{self._size - start - FRAME.size} remain"
            )
            return None
        if length > LARGEST_RECORD:
            self.lost = (
                f"record {number} (from byte {start}) has {length} bytes, and a record at most {LARGEST_RECORD}: "
                "it and everything after it is lost"
            )
            return None
        payload = self._read(length)
        if zlib.crc32(payload, zlib.crc32(frame[:4])) != checksum:
            self.lost = (
                f"checksum wrong at record {number} (bytes {start} to {end} of {self._size}): "
                "it and everything after it is lost"
            )
            return None
        self._at = end
        if not payload:
            if rest := os.fstat(self._file.fileno()).st_size - end:
                self.lost = f"{rest} bytes follow the end mark at byte {start}; they were not read"
            return None
        return payload


def _opener(path: str, flags: int) -> int:
    """Opens without waiting, as a pipe would for its writer; only regular files."""
    file = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise ValueError("it is not a regular file")
    return file


def read(path: str | os.PathLike[str]) -> Trace:
    """Reads a whole trace; raises `TraceError` as `TraceReader` does."""
    with TraceReader(path) as reader:
        events = list(reader)
        return Trace(header=reader.header, events=events, lost=reader.lost)
