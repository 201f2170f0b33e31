"""Templates of the declarative protocol: literal text with {named} fields, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from string import Formatter

from runtime.errors import ProtocolError
from runtime.protocol.patterns import Pattern

_MOST_FIELDS = 100
"""Of a template: each may stand for a whole message."""

IdTemplate = tuple[tuple[int, ...] | str, ...]
"""A template over token ids: runs of ids, and names of fields."""


def over_ids(template: str, encode: Callable[[str], list[int]]) -> IdTemplate:
    """A checked template with its literal texts encoded, run by run. Raises what `encode` raises."""
    parts: list[tuple[int, ...] | str] = []
    for literal, field, _, _ in Formatter().parse(template):
        parts.append(tuple(encode(literal)) if literal else ())
        if field is not None:
            parts.append(field)
    return tuple(part for part in parts if part)


def fill(template: IdTemplate, fields: Mapping[str, Sequence[int]]) -> list[int]:
    """Token ids of a template whose fields are filled. Raises `KeyError` for a field that is not given."""
    return [token for part in template for token in (fields[part] if isinstance(part, str) else part)]


def check_template(name: str, template: str, allowed: Collection[str], needed: Collection[str] = ()) -> None:
    """Raises `ProtocolError` naming the declaration's field if the template cannot be filled from `allowed`."""
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise ProtocolError(f"{name} {template!r} is no template ({error}); write {{{{ and }}}} for braces.") from error
    known = ", ".join(sorted(f"{{{field}}}" for field in allowed)) or "none"
    used = set()
    for _, field, spec, conversion in parsed:
        if field is None:
            continue
        if field not in allowed or spec or conversion:
            raise ProtocolError(f"{name} {template!r} uses {{{field}}}; fields that can be filled here: {known}.")
        used.add(field)
    if len(parsed) > _MOST_FIELDS:
        raise ProtocolError(f"{name} has more than {_MOST_FIELDS} fields; declare fewer.")
    for field in needed:
        if field not in used:
            raise ProtocolError(f"{name} {template!r} lacks {{{field}}}.")


def groups_of(name: str, pattern: str, needed: Collection[str] = ()) -> set[str]:
    """Named groups of a pattern.

    Raises `ProtocolError`, beginning with `name`, if it is none that can be matched, or lacks a group that is needed.
    """
    try:
        groups = set(Pattern(pattern).groups)
    except ProtocolError as error:
        raise ProtocolError(f"{name} {error}") from error
    for group in needed:
        if group not in groups:
            raise ProtocolError(f"{name} {pattern!r} lacks the group (?P<{group}>...).")
    return groups
