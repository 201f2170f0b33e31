"""What differs between two traces, thread by thread."""

from __future__ import annotations

from typing import Literal

import msgspec

from runtime.link import ThreadPath, Trace
from traces.context import context_of
from traces.tree import ThreadRecord, thread_tree, walk_threads


class ThreadDifference(msgspec.Struct, frozen=True, kw_only=True):
    """How one thread differs; pairs are of the first and the second trace."""

    path: ThreadPath
    only_in: Literal["first", "second"] | None
    position: int | None
    """Where its context first differs, in tokens; None where one's is the whole of the other's."""
    generated: tuple[int, int]
    iterations: tuple[int, int]
    outcome: tuple[str | None, str | None]


def diff(first: Trace, second: Trace) -> list[ThreadDifference]:
    """The threads, matched by path, that are in one trace only, or differ in tokens, iterations or outcome.

    Raises `TraceError` for a trace whose events do not fit together.
    """
    ours = {record.path: record for record in walk_threads(thread_tree(first.events))}
    theirs = {record.path: record for record in walk_threads(thread_tree(second.events))}
    differences = (_difference(path, ours.get(path), theirs.get(path)) for path in sorted(ours.keys() | theirs.keys()))
    return [difference for difference in differences if difference is not None]


def _difference(path: ThreadPath, a: ThreadRecord | None, b: ThreadRecord | None) -> ThreadDifference | None:
    generated = (a.generated if a else 0, b.generated if b else 0)
    iterations = (a.iterations if a else 0, b.iterations if b else 0)
    outcome = (a.outcome if a else None, b.outcome if b else None)
    if a is None or b is None:
        only_in: Literal["first", "second"] = "second" if a is None else "first"
        return ThreadDifference(
            path=path, only_in=only_in, position=None, generated=generated, iterations=iterations, outcome=outcome
        )
    ours, theirs = context_of(a), context_of(b)
    pairs = enumerate(zip(ours.tokens, theirs.tokens, strict=False))
    position = next((ours.start + at for at, (our, their) in pairs if our != their), None)
    if ours.tokens == theirs.tokens and all(one == other for one, other in (generated, iterations, outcome)):
        return None
    return ThreadDifference(
        path=path, only_in=None, position=position, generated=generated, iterations=iterations, outcome=outcome
    )
