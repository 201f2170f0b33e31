"""What callers give, as the plain values that fields are declared with: converted, or refused by name.

NumPy's and torch's numbers, arrays and tensors become Python's, whole numbers are bounded to what traces and arrays
hold, and what an annotation does not allow raises a `ValueError` that names the argument. Classes are looked for by
`isinstance`, and everything else is converted by msgspec.
"""

from __future__ import annotations

import inspect
import operator
import reprlib
import types
from collections.abc import Awaitable, Callable, Sequence, Set
from functools import cache, reduce
from typing import Annotated, Any, Literal, NamedTuple, SupportsIndex, Union, get_args, get_origin

import msgspec
from msgspec import Meta

Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""An integer of 64 bits."""
Exact = Annotated[int, Meta(gt=-(2**53), lt=2**53)]
"""An integer that every format holds exactly."""
Count = Annotated[int, Meta(ge=1, lt=2**53)]

_IN_WORDS = (
    (" - at `$", " at item `"),
    ("null", "None"),
    ("array", "a sequence"),
    ("object", "a mapping"),
    ("Expected", "expected"),
    (">=", "of at least"),
    ("<=", "of at most"),
    ("`", ""),
)
"""From msgspec's words, which are JSON's, to Python's."""

_PLAIN = (bool, int, float, str, bytes, bytearray, type(None), msgspec.Struct, type)
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 100


def shown(value: object) -> str:
    """A value for an error message: short, on one line, whatever it is."""
    try:
        return " ".join(_repr.repr(value).split())
    except Exception:
        return f"some {type(value).__name__}"


def plain(value: object) -> object:
    """Numbers, arrays and tensors of other libraries, and sequences of them, as Python's own; all else as it is."""
    value = _plain_number(value)
    if isinstance(value, Sequence | Set) and not isinstance(value, _PLAIN):
        return [_plain_number(item) for item in value]
    return value


def _plain_number(value: object) -> object:
    if isinstance(value, _PLAIN):
        return value
    try:
        tolist: Callable[[], object] | None = getattr(value, "tolist", None)
        if tolist is not None:
            return tolist()
        return operator.index(value) if isinstance(value, SupportsIndex) else value
    except Exception:
        return value


class _Wanted(NamedTuple):
    """What an annotation allows."""

    classes: tuple[type, ...]
    function: Any
    """The callable type, if there is one."""
    data: Any
    """The rest, for msgspec."""


@cache
def _wanted(hint: Any) -> _Wanted:
    arms = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    functions = [arm for arm in arms if get_origin(arm) is Callable]
    classes = tuple(arm for arm in arms if isinstance(arm, type) and not _is_data(arm))
    data = tuple(arm for arm in arms if arm not in functions and arm not in classes)
    return _Wanted(classes, functions[0] if functions else None, reduce(operator.or_, data) if data else types.NoneType)


def _is_data(kind: type) -> bool:
    return kind in (int, float, str, bool, bytes, type(None)) or get_origin(kind) is not None


def converted(value: object, hint: Any, name: str) -> Any:
    """`value` as the type that `hint` says. Raises `ValueError`, beginning with `name`, if it is none."""
    wanted = _wanted(hint)
    if wanted.classes and isinstance(value, wanted.classes):
        return value
    if wanted.function is not None and callable(value):
        _check_awaited(value, wanted.function, name)
        return value
    try:
        # The usual values are plain, and need no second look.
        return msgspec.convert(value, wanted.data)
    except Exception:
        given = plain(value)
    try:
        return msgspec.convert(given, wanted.data)
    except Exception as error:
        raise ValueError(f"{name} is {shown(value)}; {_expectation(value, wanted, error)}.") from None


def convert_fields(owner: msgspec.Struct, prefix: str = "") -> None:
    """Converts every field that has not its default, in place; for the `__post_init__` of a frozen struct.

    Raises `ValueError` for the first that does not fit its annotation, named after `prefix`.
    """
    for name, hint, default in _fields(type(owner)):
        value = getattr(owner, name)
        if value is not default:
            msgspec.structs.force_setattr(owner, name, converted(value, hint, prefix + name))


@cache
def _fields(kind: type[msgspec.Struct]) -> tuple[tuple[str, Any, Any], ...]:
    return tuple((field.name, field.type, field.default) for field in msgspec.structs.fields(kind))


def _check_awaited(function: Any, hint: Any, name: str) -> None:
    """Refuses a coroutine function where nobody would await what it gives."""
    _, result = get_args(hint)
    if get_origin(result) is Awaitable:
        return
    called = function if inspect.isroutine(function) else type(function).__call__
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called):
        raise ValueError(f"{name} is {shown(function)}, whose calls nobody would await; give a plain function.")


def _expectation(value: object, wanted: _Wanted, error: Exception) -> str:
    """What was expected instead, in words."""
    arms = get_args(wanted.data) if get_origin(wanted.data) in (Union, types.UnionType) else (wanted.data,)
    choices = [repr(choice) for arm in arms if get_origin(arm) is Literal for choice in get_args(arm)]
    if choices:
        return f"expected one of {', '.join(choices)}"
    others = [kind.__name__ for kind in wanted.classes] + ["a function"] * (wanted.function is not None)
    if not others:
        return reduce(lambda text, word: text.replace(*word), _IN_WORDS, str(error).rstrip("."))
    if isinstance(value, type) and issubclass(value, wanted.classes):
        return f"that is the class: give {value.__name__}(...)"
    for arm in arms:
        others.append("None" if arm is types.NoneType else getattr(arm, "__name__", str(arm)))
    return f"expected {' or '.join(others)}, got {type(value).__name__}"
