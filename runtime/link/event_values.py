"""Values that events have without a type: settings and policies, as builtins."""

from __future__ import annotations

import msgspec

from runtime.link.events import DEEPEST_VALUE, AnyEvent, GenerateStarted, Header, ThreadOpened


def check_plain(holder: AnyEvent | Header) -> None:
    """Raises `ValueError` unless the untyped values of a record are what JSON has, not nested without measure."""
    match holder:
        case ThreadOpened():
            values = [holder.depth]
        case GenerateStarted():
            values = [holder.sampling, holder.depth]
        case Header():
            values = [holder.policy, holder.engine]
        case _:
            return
    _check(values)


def check_recordable(value: msgspec.Struct) -> None:
    """Raises `TypeError` unless a record of the value, such as a policy, can be written and read again."""
    try:
        _check([msgspec.msgpack.decode(msgspec.msgpack.encode(value))])
    except Exception as error:
        raise TypeError(
            f"{type(value).__name__} cannot be recorded: {str(error).rstrip('.')}. Keep its fields to numbers, "
            "strings, tuples and policies; code belongs in its methods."
        ) from error


def _check(values: list[object]) -> None:
    for _ in range(DEEPEST_VALUE + 1):
        values = [inner for value in values for inner in _parts(value)]
        if not values:
            return
    raise ValueError(f"values are nested more than {DEEPEST_VALUE} deep")


def _parts(value: object) -> list[object]:
    if value is None or isinstance(value, bool | int | float | str):
        return []
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str | int | float):
                raise ValueError(f"an object has a key of type {type(key).__name__}")
        return list(value.values())
    raise ValueError(f"a value has type {type(value).__name__}, which no settings have")
