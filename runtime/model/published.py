"""Reading a published `config.json`, whatever model it describes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from runtime.errors import CheckpointError


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `CheckpointError`, naming the file, if it is missing or holds no object."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. A checkpoint directory needs config.json and model.safetensors.")
    try:
        raw = msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(raw).__name__}.")
    return raw


def expect(path: Path, raw: Mapping[str, Any], key: str, supported: object) -> None:
    """Raises `CheckpointError` if a key is there and has another value than the only one supported."""
    if raw.get(key, supported) != supported:
        raise CheckpointError(f"{path}: {key} is {raw[key]!r}; supported is {supported!r}.")
