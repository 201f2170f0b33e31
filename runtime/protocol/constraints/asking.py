"""What tokens are to be constrained to, as callers and protocols give it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypedDict

import msgspec

from policies.conversion import shown
from runtime.errors import ConstraintError
from runtime.link.constraints import Constraint
from runtime.protocol.constraints.compiling import check_constraint

_LONGEST = 2**20
"""Bytes of a schema, an expression or a grammar: traces have it in one record."""


class ConstraintOptions(TypedDict, total=False):
    """Of `generate` and `stream`: what the text must be, at most one of the four."""

    json_schema: Mapping[str, Any] | type[Any] | None
    """JSON under this schema, or under that of a type that msgspec knows: a `Struct`, a dataclass, `list[int]`, ..."""
    regex: str | None
    """A text that the whole of this regular expression matches, in Rust's dialect."""
    choices: Sequence[str] | None
    """One of these texts."""
    grammar: str | None
    """A text of this grammar, in llguidance's dialect of Lark, which begins with the rule `start`."""
    resume: bool
    """Whether to go on with the constrained text that the last call left unfinished, in this thread or in the one that
    it was forked from; what was appended since is a part of it."""


def constraint_of(options: ConstraintOptions, *, stops: bool) -> Constraint | None:
    """The constraint that is asked for, if any, checked. `stops` says whether the call has stops of its own.

    Raises `ConstraintError`, saying what is wrong, `TypeError` for an option that there is none of, and `ImportError`
    where llguidance is not installed.
    """
    if unknown := sorted(options.keys() - ConstraintOptions.__annotations__.keys()):
        raise TypeError(f"there is no argument {unknown[0]!r}")
    given = {name: value for name, value in options.items() if name != "resume" and value is not None}
    if len(given) > 1:
        raise ConstraintError(f"{' and '.join(given)} are given together; a text can be one of them")
    if not given:
        if options.get("resume"):
            raise ConstraintError("resume is given without what the text must be; give the same again")
        return None
    if stops:
        raise ConstraintError("stop is given with a constraint, which itself says where the text ends; leave stop out")
    ((name, value),) = given.items()
    made = _FORMS[name](value)
    try:
        size = len(made.form.encode())
    except UnicodeEncodeError:
        raise ConstraintError(f"{name} has half a surrogate pair, which no text has; leave it out") from None
    if size > _LONGEST:
        raise ConstraintError(f"{name} takes {size} bytes; give one of at most {_LONGEST}")
    _checked(made)
    return made


def _json_schema(value: object) -> Constraint:
    if isinstance(value, Mapping):
        schema: object = value
    else:
        try:
            schema = msgspec.json.schema(value)
        except Exception as error:
            raise ConstraintError(
                f"json_schema is {shown(value)}; give a schema as a mapping, or a type that msgspec knows ({error})"
            ) from None
    try:
        form = msgspec.json.encode(schema).decode()
    except Exception as error:
        raise ConstraintError(f"json_schema has a value that JSON has not ({error})") from None
    return Constraint(kind="json_schema", form=form)


def _text(name: Any) -> Any:
    def made(value: object) -> Constraint:
        if not isinstance(value, str) or not value:
            raise ConstraintError(f"{name} is {shown(value)}; give it as a string that is not empty")
        return Constraint(kind=name, form=value)

    return made


def _choices(value: object) -> Constraint:
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise ConstraintError(f"choices is {shown(value)}; give a list of strings")
    if wrong := [item for item in value if not isinstance(item, str) or not item]:
        raise ConstraintError(f"choices has {shown(wrong[0])}; give strings that are not empty")
    return Constraint(kind="choices", form=msgspec.json.encode(list(value)).decode())


_FORMS = {"json_schema": _json_schema, "regex": _text("regex"), "choices": _choices, "grammar": _text("grammar")}


@lru_cache(maxsize=256)
def _checked(constraint: Constraint) -> None:
    """Remembers what was found right."""
    check_constraint(constraint)
