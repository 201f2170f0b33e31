"""Values that events have without a type: settings and policies, as builtins."""

from __future__ import annotations

from runtime.errors import TraceError
from traces.events import DEEPEST_VALUE, AnyEvent, GenerateStarted, Header, ThreadOpened


def check_plain(holder: AnyEvent | Header) -> None:
    """Raises `TraceError` unless the untyped values of a record are what JSON has, not nested without measure."""
    match holder:
        case ThreadOpened():
            values = [holder.depth]
        case GenerateStarted():
            values = [holder.sampling, holder.depth]
        case Header():
            values = [holder.policy, holder.engine]
        case _:
            return
    for _ in range(DEEPEST_VALUE + 1):
        values = [inner for value in values for inner in _parts(value)]
        if not values:
            return
    raise TraceError(f"{type(holder).__name__} holds values nested more than {DEEPEST_VALUE} deep")


def _parts(value: object) -> list[object]:
    if value is None or isinstance(value, bool | int | float | str):
        return []
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str | int | float):
                raise TraceError(f"an object has a key of type {type(key).__name__}")
        return list(value.values())
    raise TraceError(f"a value has type {type(value).__name__}, which no settings have")
