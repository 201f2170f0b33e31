"""Checks of a policy's numbers when it is made. Every error names the policy and the field."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from policies.conversion import plain, shown

LARGEST_COUNT = 2**31 - 1
"""Bounds of iterations travel as 32-bit integers."""


def check_count(owner: msgspec.Struct, name: str, value: object, least: int) -> None:
    """Makes the field a plain whole number. Raises `ValueError` unless it is one, and at least `least`."""
    number = plain(value)
    if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= LARGEST_COUNT:
        raise ValueError(
            f"{type(owner).__name__}: {name} is {shown(value)}; give a whole number of at least {least}"
            f"{f', and at most {LARGEST_COUNT}' if isinstance(number, int) and number > LARGEST_COUNT else ''}."
        )
    if number is not value:
        msgspec.structs.force_setattr(owner, name, number)


def check_flag(owner: msgspec.Struct, name: str, value: object) -> None:
    """Raises `ValueError` unless the field is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{type(owner).__name__}: {name} is {shown(value)}; give True or False.")


def check_number(
    owner: msgspec.Struct,
    name: str,
    value: object,
    least: float,
    most: float = sys.float_info.max,
    *,
    above: bool = False,
    advice: str = "",
) -> None:
    """Makes the field a plain number. Raises `ValueError` unless it is finite and from `least` to `most`; with `above`,
    not `least`. `advice` is what to give instead, where the bounds do not say it."""
    number = plain(value)
    if (
        not isinstance(number, int | float)
        or isinstance(number, bool)
        or not least <= number <= most
        or (above and number == least)
    ):
        wanted = f"a finite number {'above' if above else 'of at least'} {least:g}" + (
            "" if most == sys.float_info.max else f", at most {most:g}"
        )
        raise ValueError(f"{type(owner).__name__}: {name} is {shown(value)}; give {advice or wanted}.")
    if number is not value:
        msgspec.structs.force_setattr(owner, name, number)


def check_threshold(policy: msgspec.Struct, value: object) -> None:
    """Raises `ValueError` unless the threshold is a finite number of at least 0."""
    advice = "a finite number of at least 0 (0 never exits early; Fixed(1) always exits at once)"
    check_number(policy, "threshold", value, 0, advice=advice)


def check_choice(policy: msgspec.Struct, name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises `ValueError` unless the field is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{type(policy).__name__}: {name} is {shown(value)}; give one of {listed}.")


def check_policy(owner: msgspec.Struct, name: str, value: object, kind: type[msgspec.Struct]) -> None:
    """Raises `ValueError` unless the field holds a policy of the given kind."""
    if isinstance(value, kind):
        return
    if isinstance(value, type) and issubclass(value, kind):
        raise ValueError(f"{type(owner).__name__}: {name} is the class {value.__name__}; give {value.__name__}(...).")
    raise ValueError(f"{type(owner).__name__}: {name} is {shown(value)}; give a {kind.__name__}.")


def field_defaults(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Default of each field that has one."""
    fields, defaults = kind.__struct_fields__, kind.__struct_defaults__
    return dict(zip(fields[len(fields) - len(defaults) :], defaults, strict=True))


def refuse_fields(policy: msgspec.Struct, names: tuple[str, ...], advice: str) -> None:
    """Raises `ValueError` if a field that has no effect on this policy was given a value of its own."""
    defaults = field_defaults(type(policy))
    given = [name for name in names if getattr(policy, name) != defaults[name]]
    if given:
        raise ValueError(f"{type(policy).__name__} has no use for {', '.join(given)}; {advice}.")
