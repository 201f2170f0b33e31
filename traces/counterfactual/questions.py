"""The questions of a trace: what its trees were asked, and whether that alone makes them what they were."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from runtime import Sampling, TraceError
from runtime.link import Constraint, Header, ThreadPath
from traces.recorded import builtins
from traces.tree import ThreadRecord, path_name, walk_threads


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What the root of a tree was asked."""

    path: ThreadPath
    tokens: tuple[int, ...]
    text: str
    """Its prompt as the trace has it."""
    sampling: Sampling
    constraint: Constraint | None
    """What its text had to be."""
    max_tokens: int | None
    """The bound that every thread of the tree had; None where they had what their contexts left."""


def question_of(root: ThreadRecord) -> Question:
    """What a recorded tree was asked, as `Engine.run` asks.

    Raises `TraceError`, saying why, for one that a program drove, or that had not begun: its questions are in the
    program.
    """
    name = path_name(root.path)
    threads = list(walk_threads([root]))
    if any(not spawn.by_model for thread in threads for spawn in thread.spawns):
        raise TraceError(f"Tree {name} has children that a program spawned.")
    if not root.receipts or not root.calls:
        raise TraceError(f"Tree {name} was asked nothing.")
    # Calls that were all refused are answered without a child.
    joins = sum(bool(wait.joined.delivered) or not wait.joined.children for wait in root.waits)
    if len(root.receipts) > 1 + joins:
        raise TraceError(f"A program appended to the context of tree {name}.")
    bounds = {thread.calls[0].max_tokens for thread in threads if thread.calls}
    first = root.calls[0]
    # What a protocol declares holds again.
    constraint = None if first.constraint is None or first.constraint.kind == "blocks" else first.constraint
    if constraint is not None and len(root.calls) > 1:
        raise TraceError(f"A program constrained some of the texts of tree {name}.")
    try:
        sampling = msgspec.convert(builtins(first.sampling), Sampling)
    except (msgspec.ValidationError, ValueError) as error:
        raise TraceError(f"The sampling of tree {name} cannot be used: {error}.") from error
    return Question(
        path=root.path,
        tokens=root.receipts[0].tokens,
        text=root.prompt or "",
        sampling=sampling,
        constraint=constraint,
        max_tokens=bounds.pop() if len(bounds) == 1 else None,
    )


def questions_of(roots: Iterable[ThreadRecord], header: Header) -> tuple[list[Question], list[str]]:
    """The questions of those trees that have one, and why the others have none. Raises `TraceError` where none has."""
    questions, refused = [], []
    for root in roots:
        try:
            questions.append(question_of(root))
        except TraceError as error:
            refused.append(str(error))
    if not questions:
        why = f" {refused[0]}" if refused else ""
        raise TraceError(f"The trace of {header.checkpoint} has no question that can be asked again.{why}")
    return questions, refused
