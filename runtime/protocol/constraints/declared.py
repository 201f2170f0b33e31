"""What protocols declare of the texts between tags."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from runtime.errors import ConstraintError, ProtocolError
from runtime.link.constraints import Block, Constraint
from runtime.protocol.constraints.asking import constraint_of

Form = Any
"""In Python a type that msgspec knows, or a mapping with one of `json_schema`, `regex`, `choices` and `grammar`, as in
JSON; None for no form."""


def form_of(name: str, given: Form) -> dict[str, Any] | None:
    """A declared form as JSON has it. Raises `ProtocolError`, naming the field, for what is none."""
    if given is None:
        return None
    if not isinstance(given, Mapping):
        try:
            return {"json_schema": msgspec.json.schema(given)}
        except Exception as error:
            raise ProtocolError(f"{name} is neither a type that msgspec knows nor a mapping: {error}") from error
    if len(given) != 1 or not given.keys() <= {"json_schema", "regex", "choices", "grammar"}:
        raise ProtocolError(f"{name} has {sorted(given)}; declare one of json_schema, regex, choices and grammar.")
    return dict(given)


def blocks_of(
    forms: Mapping[str, tuple[Form, str, tuple[str, ...]]],
    thought: tuple[str, str] | None,
    token_of: Callable[[str], int | None],
) -> Constraint | None:
    """What a protocol's threads are constrained to; None for nothing.

    `forms` has by the field's name a form, the tag before it and those behind it; `token_of` gives the id of a tag that
    is one token. Raises `ProtocolError` for a form that cannot be followed, or tags of several tokens.
    """
    blocks = []
    for name, (form, opens, closes) in forms.items():
        if form is None:
            continue
        try:
            made = constraint_of(form, stops=False)
        except (ConstraintError, TypeError) as error:
            raise ProtocolError(f"{name}: {error}") from error
        assert made is not None
        assert made.kind != "blocks"
        opening = _one(opens, token_of)
        closing = tuple(_one(tag, token_of) for tag in closes)
        blocks.append(Block(opens=opening, closes=closing, kind=made.kind, form=made.form))
    if not blocks:
        return None
    return Constraint(kind="blocks", form="", blocks=tuple(blocks), thought=thought_of(thought, token_of))


def thought_of(thought: tuple[str, str] | None, token_of: Callable[[str], int | None]) -> tuple[int, int] | None:
    """The tokens of a thought's tags. Raises `ProtocolError` for tags of several tokens."""
    return None if thought is None else (_one(thought[0], token_of), _one(thought[1], token_of))


def _one(tag: str, token_of: Callable[[str], int | None]) -> int:
    token = token_of(tag)
    if token is None:
        raise ProtocolError(
            f"Tag {tag!r} is not one token of the vocabulary; what stands between tags, or a thought, can be "
            "constrained only where each of them is. Leave messages, returns and thought out, or declare other tags."
        )
    return token
