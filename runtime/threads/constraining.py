"""Constrained texts that calls have left unfinished, and that others go on with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from runtime.errors import ConstraintError
from runtime.link.constraints import Constraint
from runtime.link.events import ThreadPath


class Unfinished(NamedTuple):
    """A constrained text that a context has, or had, at its end."""

    constraint: Constraint
    start: int
    """Tokens of the context before it."""


def placed(asked: Constraint, context: Sequence[int], start: int) -> Constraint:
    """A constraint of a text that begins at `start` of a context, which may be in a thought there."""
    is_thinking = False
    if asked.thought is not None:
        tag = next((token for token in reversed(context[:start]) if token in asked.thought), None)
        is_thinking = tag == asked.thought[0]
    return msgspec.structs.replace(asked, begun=len(context) - start, is_thinking=is_thinking)


def unfinished_by(asked: Constraint | None, length: int) -> Unfinished | None:
    """What a call in a context of this length leaves unfinished until it has stopped by itself."""
    if asked is None:
        return None
    return Unfinished(msgspec.structs.replace(asked, begun=0, is_thinking=False), length - asked.begun)


def begun_at(
    path: ThreadPath, asked: Constraint, unfinished: Unfinished | None, length: int, joined_at: int | None
) -> int:
    """Where the unfinished text of a constraint begins in a context of this length, whose last merged join was at
    `joined_at`. Raises `ConstraintError` where there is none."""
    if unfinished is None or unfinished.constraint != asked or unfinished.start > length:
        raise ConstraintError(
            f"Thread {path} has no unfinished text of this constraint to resume. Leave resume out to begin one"
        )
    if joined_at is not None and joined_at > unfinished.start:
        raise ConstraintError(f"Thread {path} has merged children since its text began. Leave resume out to begin one")
    return unfinished.start
