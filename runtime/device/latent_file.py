"""Latent states on disk: one safetensors file, written row by row, in bounded memory.

    states      float32 [rows, k]       in order of arrival; rows of a token follow each other, by iteration
    thread, position, iteration, token  int32 [rows]
    directions  float32 [k, width]      what states are projected to; not there where they are whole
    paths       uint8 [bytes]           of the threads that `thread` counts: "0 0.1 0.2", UTF-8

While it is written it has another name, and rows of the index stand in a second file. So what has the file's own name
is always whole: it holds all that was recorded, and its metadata's `lost` says what was not.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from runtime.errors import TraceError
from runtime.link.commands import ThreadPath
from runtime.link.latents import Float32, latents_path

HEADER = 4096
"""Bytes before the data: what is known last stands first."""
BUFFERED = 2**20
"""Bytes that are written at once."""
COLUMNS = ("thread", "position", "iteration", "token")

_INDEX = np.dtype("<i4")
_AT_ONCE = 2**16
"""Rows of the index that are read at once."""


class LatentFile:
    """Owns the files until `close` or `abandon`. What a disk raises is raised as `OSError`."""

    def __init__(self, trace: Path, *, overwrite: bool) -> None:
        """Beside the file of a trace. Raises `TraceError` where it cannot be written, or is there, without
        `overwrite`."""
        self.path = latents_path(trace.expanduser())
        self._rows = 0
        self._width = 0
        self._threads: dict[ThreadPath, int] = {}
        if not overwrite and self.path.exists() and self.path.stat().st_size:
            raise TraceError(f"{self.path} has latent states of another run. Give overwrite=True, or another name.")
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._index_partial = self.path.with_name(self.path.name + ".index.partial")
        self._open: list[BinaryIO] = []
        try:
            for path in (self._partial, self._index_partial):
                self._open.append(open(path, "w+b", buffering=BUFFERED))  # noqa: SIM115 - closed by close()
            self._states, self._index = self._open
            self._states.write(bytes(HEADER))
        except OSError as error:
            self.abandon()
            raise TraceError(f"Cannot record latent states in {self.path}: {error.strerror or error}.") from error

    def append(self, thread: ThreadPath, columns: tuple[Any, Any, Any], states: Float32) -> None:
        """Rows [n, k] of one thread, with their positions, iterations and tokens [n]."""
        self._width = states.shape[1]
        number = self._threads.setdefault(thread, len(self._threads))
        index = np.empty((len(states), len(COLUMNS)), _INDEX)
        index[:, 0] = number
        for place, column in enumerate(columns, start=1):
            index[:, place] = column
        self._states.write(np.ascontiguousarray(states, "<f4").tobytes())
        self._index.write(index.tobytes())
        self._rows += len(states)

    def close(self, directions: Float32 | None, about: dict[str, str]) -> None:
        """Puts the file together under its own name; `about` is its metadata."""
        try:
            tensors: dict[str, tuple[str, list[int], int]] = {
                "states": ("F32", [self._rows, self._width], 4 * self._rows * self._width)
            }
            for place, name in enumerate(COLUMNS):
                tensors[name] = ("I32", [self._rows], 4 * self._rows)
                self._copy_column(place)
            if directions is not None:
                tensors["directions"] = ("F32", list(directions.shape), 4 * directions.size)
                self._states.write(np.ascontiguousarray(directions, "<f4").tobytes())
            paths = " ".join(".".join(map(str, path)) for path in self._threads).encode()
            tensors["paths"] = ("U8", [len(paths)], len(paths))
            self._states.write(paths)
            self._states.seek(0)
            self._states.write(_header(tensors, about))
            self._states.close()
            os.replace(self._partial, self.path)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Removes what has not got its own name. Raises nothing; more often than once does nothing."""
        for file in self._open:
            with suppress(OSError, ValueError):
                file.close()
        for path in (self._partial, self._index_partial) if self._open else ():
            with suppress(OSError):
                path.unlink()
        self._open = []

    def _copy_column(self, place: int) -> None:
        self._index.seek(0)
        while part := self._index.read(_AT_ONCE * len(COLUMNS) * _INDEX.itemsize):
            self._states.write(np.frombuffer(part, _INDEX).reshape(-1, len(COLUMNS))[:, place].tobytes())


def _header(tensors: dict[str, tuple[str, list[int], int]], about: dict[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": about}
    at = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    length = HEADER - 8
    assert len(text) <= length, "the metadata is longer than there is room for"
    return length.to_bytes(8, "little") + text.ljust(length)
