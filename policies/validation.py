"""Checks of a policy's numbers when it is made. Every error names the policy and the field."""

from __future__ import annotations

import math
from typing import Any

import msgspec


def check_count(policy: msgspec.Struct, name: str, value: int, least: int) -> None:
    """Raises `ValueError` unless the field is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{type(policy).__name__}: {name} is {value!r}; give a whole number of at least {least}.")


def check_number(
    owner: msgspec.Struct, name: str, value: float, least: float, most: float = math.inf, *, above: bool = False
) -> None:
    """Raises `ValueError` unless the field is a finite number from `least` to `most`; with `above`, not `least`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not least <= value <= most or (above and value == least):
        wanted = f"{'above' if above else 'of at least'} {least:g}" + (
            "" if most == math.inf else f", at most {most:g}"
        )
        raise ValueError(f"{type(owner).__name__}: {name} is {value!r}; give a finite number {wanted}.")


def check_threshold(policy: msgspec.Struct, value: float) -> None:
    """Raises `ValueError` unless the threshold is a finite number of at least 0."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise ValueError(
            f"{type(policy).__name__}: threshold is {value!r}; give a finite number of at least 0 "
            "(0 never exits early; Fixed(1) always exits at once)."
        )


def check_choice(policy: msgspec.Struct, name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises `ValueError` unless the field is one of the choices."""
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{type(policy).__name__}: {name} is {value!r}; give one of {listed}.")


def check_policy(owner: msgspec.Struct, name: str, value: object, kind: type[msgspec.Struct]) -> None:
    """Raises `ValueError` unless the field holds a policy of the given kind."""
    if isinstance(value, kind):
        return
    if isinstance(value, type) and issubclass(value, kind):
        raise ValueError(f"{type(owner).__name__}: {name} is the class {value.__name__}; give {value.__name__}(...).")
    raise ValueError(f"{type(owner).__name__}: {name} is {value!r}; give a {kind.__name__}.")


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
