"""Reading the files of a checkpoint directory: none is trusted, so that reading is bounded and never waits."""

from __future__ import annotations

import json
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from reprlib import Repr
from typing import Any

import msgspec

from runtime.errors import CheckpointError

LARGEST_JSON = 2**24
"""Bytes that a JSON file may have; the index of a model of 100,000 tensors has fewer."""

_DEEPEST_JSON = 32

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 120


def holds(path: Path) -> bool:
    """Whether there is a file at `path`; links count as what they lead to.

    Raises `CheckpointError` for what is there and is no file that can be read without waiting (a directory, a pipe, a
    device, a link to nothing), and for a path that cannot be looked at.
    """
    mode = _mode(path)
    if mode is None:
        return False
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise CheckpointError(f"{path}: is {kind}; expected a file.")
    return True


def is_directory(path: Path) -> bool:
    """Whether there is a directory at `path`. Raises `CheckpointError` as `holds` does for what cannot be looked at."""
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def _mode(path: Path) -> int | None:
    """What is at `path`; None for nothing."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if not path.is_symlink():
            return None
        raise CheckpointError(
            f"{path}: is a link to {str(path.readlink())!r}, where there is nothing. Copy what it should lead to, or "
            "remove the link."
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{shown(str(path))}: cannot be looked at ({shown(str(error))}). Check the name and its permissions."
        ) from error


def read_bytes(path: Path) -> bytes:
    """Content of a small file. Raises `CheckpointError` where there is none, or one above `LARGEST_JSON` bytes."""
    if not holds(path):
        raise CheckpointError(f"{path}: no such file. A checkpoint directory needs config.json and model.safetensors.")
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_JSON + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}). Check its permissions and its disk.") from error
    if len(content) > LARGEST_JSON:
        raise CheckpointError(f"{path}: is larger than {LARGEST_JSON} bytes; expected a configuration, not data.")
    return content


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `CheckpointError`, naming the file, if it is missing or holds no object."""
    return parse_object(path, read_bytes(path))


def parse_object(path: Path, content: bytes) -> dict[str, Any]:
    """The JSON object in the content of a file. Raises `CheckpointError`, naming the file, for anything else.

    Stricter than the reference's reader where that would have to choose: a key that is there twice is refused, and so
    are numbers that are not finite and values nested deeper than any configuration's.
    """
    try:
        # The first knows what JSON is: numbers that are finite, text that is Unicode. The second sees each key.
        msgspec.json.decode(content)
        raw = json.loads(content, object_pairs_hook=_unique)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}). Copy the file again, or correct it.") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(raw).__name__}.")
    if not _is_shallow(raw):
        raise CheckpointError(f"{path}: values are nested more than {_DEEPEST_JSON} deep; expected a configuration.")
    return raw


def expect(path: Path, raw: Mapping[str, Any], key: str, supported: object) -> None:
    """Raises `CheckpointError` if a key is there and has another value than the only one supported."""
    if raw.get(key, supported) != supported:
        raise CheckpointError(f"{path}: {key} is {shown(raw[key])}; supported is {supported!r}.")


def shown(value: object) -> str:
    """A value for an error message, cut where it is long."""
    return _SHORT.repr(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {shown(key)} is there twice")
    return members


def _is_shallow(value: object) -> bool:
    level = [value]
    for _ in range(_DEEPEST_JSON):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
            elif isinstance(item, list):
                below += item
        if not below:
            return True
        level = below
    return False
