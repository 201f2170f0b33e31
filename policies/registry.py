"""Policies as plain data: for traces, `braid.json` and configuration files.

A policy is an object with its fields and its class's tag (the class name, unless it declares another) under "type".
Every class of policy that is defined anywhere in the process is known, since it is looked up when needed among the
subclasses; msgspec itself decodes only unions that are closed beforehand.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, overload

import msgspec

from policies.depth.base import DepthPolicy
from policies.policy import Policy
from policies.select.base import SelectPolicy
from policies.spawn.base import SpawnPolicy

AnyPolicy = Policy | DepthPolicy | SpawnPolicy | SelectPolicy
P = TypeVar("P", bound=AnyPolicy)

_ROOTS: tuple[type[AnyPolicy], ...] = (Policy, DepthPolicy, SpawnPolicy, SelectPolicy)


def to_builtins(policy: AnyPolicy) -> dict[str, Any]:
    """A policy as JSON-like objects that `from_builtins` reads.

    Raises `TypeError` if a user's policy has a field that is no data, such as a function.
    """
    try:
        return cast(dict[str, Any], msgspec.to_builtins(policy))
    except Exception as error:
        raise TypeError(
            f"{type(policy).__name__} cannot be written down: {str(error).rstrip('.')}. "
            "Keep its fields to numbers, strings, tuples and policies; code belongs in its methods."
        ) from error


def to_json(policy: AnyPolicy) -> bytes:
    """A policy as one line of JSON. Raises as `to_builtins`."""
    return msgspec.json.encode(to_builtins(policy))


@overload
def from_builtins(data: object) -> AnyPolicy: ...
@overload
def from_builtins(data: object, kind: type[P]) -> P: ...
def from_builtins(data: object, kind: type[Any] | None = None) -> AnyPolicy:
    """The policy that `to_builtins` wrote down; of the given kind, such as `DepthPolicy`, if any.

    Raises `ValueError`, naming the field, for a type that no class in the process has or that several have, for
    missing, unknown or wrong fields, and for values that the policy refuses.
    """
    return _policy(data, _ROOTS if kind is None else (kind,), "policy")


@overload
def from_json(text: bytes | str) -> AnyPolicy: ...
@overload
def from_json(text: bytes | str, kind: type[P]) -> P: ...
def from_json(text: bytes | str, kind: type[Any] | None = None) -> AnyPolicy:
    """The policy in a JSON text. Raises as `from_builtins`, and `ValueError` for a text that is no JSON."""
    try:
        data = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ValueError(f"policy: not valid JSON ({error}).") from error
    return _policy(data, _ROOTS if kind is None else (kind,), "policy")


def known(*kinds: type[AnyPolicy]) -> dict[str, list[type[AnyPolicy]]]:
    """Classes of the given kinds (all, where none is given) by tag; more than one where a tag is ambiguous."""
    found: dict[str, list[type[AnyPolicy]]] = {}
    for kind in dict.fromkeys(each for root in kinds or _ROOTS for each in _family(root)):
        tag = kind.__struct_config__.tag
        if isinstance(tag, str):
            same = found.setdefault(tag, [])
            # A module reloaded, or a notebook cell run again, defines its classes anew: the last one counts.
            same[:] = [other for other in same if not _replaces(kind, other)] + [kind]
    return found


def _family(kind: type[AnyPolicy]) -> Iterator[type[AnyPolicy]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _family(child)


def _replaces(new: type, old: type) -> bool:
    is_top_level = "<locals>" not in new.__qualname__
    return is_top_level and (new.__module__, new.__qualname__) == (old.__module__, old.__qualname__)


def _policy(data: object, kinds: tuple[type[AnyPolicy], ...], where: str) -> AnyPolicy:
    """The policy in `data`, of one of `kinds`; `where` names the place for errors."""
    wanted = " or ".join(kind.__name__ for kind in kinds)
    if not isinstance(data, Mapping):
        raise ValueError(f'{where}: expected an object such as {{"type": "Fixed"}} for a {wanted}, found {data!r}.')
    if "type" not in data:
        raise ValueError(f'{where}: "type" is missing; it names the class of the {wanted}.')
    tag = data["type"]
    classes = known(*kinds)
    if not isinstance(tag, str) or tag not in classes:
        raise ValueError(
            f"{where}: {tag!r} is no known {wanted}; known are {', '.join(sorted(classes))}. "
            "A policy of your own is known once the module that defines it is imported."
        )
    if len(classes[tag]) > 1:
        places = ", ".join(sorted(f"{each.__module__}.{each.__qualname__}" for each in classes[tag]))
        raise ValueError(f"{where}: {tag!r} is the name of several classes: {places}. Rename all but one.")
    return _build(classes[tag][0], data, where)


def _build(kind: type[AnyPolicy], data: Mapping[str, object], where: str) -> AnyPolicy:
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    unknown = [name for name in data if name != "type" and name not in fields]
    if unknown:
        raise ValueError(f"{where}: {kind.__name__} has no field {unknown[0]!r}; it has {', '.join(fields) or 'none'}.")
    missing = [name for name, field in fields.items() if field.required and name not in data]
    if missing:
        raise ValueError(f"{where}: {kind.__name__} needs {', '.join(missing)}.")
    values = {
        field.name: _value(data[name], field.type, f"{where}.{name}") for name, field in fields.items() if name in data
    }
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _value(data: Any, hint: Any, where: str) -> Any:
    """`data` as a value of the type `hint`, with policies at any depth of tuples and unions resolved."""
    if not _holds_policies(hint):
        try:
            return msgspec.convert(data, hint, str_keys=True)
        except msgspec.ValidationError as error:
            raise ValueError(f"{where}: {error}.") from error
    if isinstance(hint, type) and issubclass(hint, _ROOTS):
        return _policy(data, (hint,), where)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _value(data, arguments[0], where)
    if origin in (Union, types.UnionType):
        return _arm(data, arguments, where)
    if origin is not tuple:
        raise ValueError(f"{where}: a field of type {hint} cannot be read; hold policies in tuples, which hash.")
    if not isinstance(data, list | tuple):
        raise ValueError(f"{where}: expected a list, found {data!r}.")
    hints = [arguments[0]] * len(data) if arguments[-1] is Ellipsis else list(arguments)
    if len(data) != len(hints):
        raise ValueError(f"{where}: expected {len(hints)} items, found {len(data)}.")
    return tuple(_value(item, each, f"{where}[{n}]") for n, (item, each) in enumerate(zip(data, hints, strict=True)))


def _arm(data: Any, hints: tuple[Any, ...], where: str) -> Any:
    """`data` as a value of the first type of a union that takes it."""
    if data is None and types.NoneType in hints:
        return None
    errors = []
    for hint in hints:
        if hint is types.NoneType:
            continue
        try:
            return _value(data, hint, where)
        except ValueError as error:
            errors.append(error)
    raise errors[0] if len(errors) == 1 else ValueError(" Or ".join(str(error) for error in errors))


def _holds_policies(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, _ROOTS):
        return True
    return any(_holds_policies(argument) for argument in get_args(hint))
