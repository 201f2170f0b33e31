"""Files that take another's place in one move, so that whoever looks sees the old one or the new one, whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; what was written takes the place of `path` if the block ends well, and goes if it fails.

    It is on the disk before it takes the place, and in it when the block has ended: a machine that fails keeps one of
    both files too.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        _sync(partial)
        os.replace(partial, path)
        _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes) -> None:
    """Writes `content` in the place of `path`, as `replacing` does."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no directories.
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
