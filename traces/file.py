"""The file under a trace: a regular one, of one writer at a time, that only grows."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

from runtime import TraceError

if sys.platform != "win32":
    import fcntl

FLAGS = os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
"""Opening never waits, as that of a pipe would for its other end."""


class TraceFile:
    """Opened for appending and locked until it is closed or its process ends, however it ends.

    Raises `TraceError` where the path is no regular file or cannot be opened, where another writer has it, and where
    it has something in it, without `overwrite`. The lock is advisory and the operating system's: there is none on
    Windows, and none where the file system knows no locks.
    """

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        self._path = path
        try:
            # Looked at first, since opening a device may already do something to it.
            if path.exists() and not path.is_file():
                raise TraceError(f"Cannot write a trace to {path}: it is not a regular file. Name one.")
            self._file = os.open(path, os.O_WRONLY | FLAGS, 0o644)
        except (OSError, ValueError) as error:
            raise TraceError(f"Cannot write a trace to {path}: {reason_of(error)}.") from error
        try:
            self._claim(overwrite)
        except BaseException:
            os.close(self._file)
            raise

    def append(self, data: bytes | bytearray) -> None:
        """Returns when the operating system has all of `data`. Raises `OSError`; then it may have a part of it."""
        with memoryview(data) as view:
            written = 0
            while written < len(view):
                step = os.write(self._file, view[written:])
                if not step:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                written += step

    def sync(self) -> None:
        """Returns when the disk has everything appended so far. Raises `OSError`."""
        os.fsync(self._file)

    def close(self) -> None:
        """Gives the file and its lock back; once. Raises `OSError`, and has given them back all the same."""
        os.close(self._file)

    def _claim(self, overwrite: bool) -> None:
        found = os.fstat(self._file)
        if not stat.S_ISREG(found.st_mode):
            raise TraceError(f"Cannot write a trace to {self._path}: it is not a regular file. Name one.")
        self._lock()
        # Its size as it is under the lock.
        if os.fstat(self._file).st_size and not overwrite:
            raise TraceError(
                f"{self._path} exists and is not empty. Name another file, delete it, or pass overwrite=True to "
                "replace it."
            )
        try:
            os.ftruncate(self._file, 0)
        except OSError as error:
            raise TraceError(f"Cannot write a trace to {self._path}: {reason_of(error)}.") from error

    def _lock(self) -> None:
        if sys.platform == "win32":
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise TraceError(
                    f"Another writer is recording to {self._path}. Name another file, or wait until that one is done."
                ) from error


def is_locked(file: int) -> bool:
    """Whether a writer has an open file locked; True where that cannot be told."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def reason_of(error: OSError | ValueError) -> str:
    """What the operating system says, without number and path; of other errors what they say."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
