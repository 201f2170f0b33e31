"""What differs between two traces, thread by thread."""

from __future__ import annotations

from typing import Literal

import msgspec

from traces.events import ThreadPath
from traces.reader import Trace
from traces.tree import ThreadStory, tree_of, walk


class ThreadDifference(msgspec.Struct, frozen=True, kw_only=True):
    """How one thread differs; pairs are of the first and the second trace."""

    path: ThreadPath
    only_in: Literal["first", "second"] | None
    position: int | None
    """Where its context first differs, in tokens; None where one's is the whole of the other's."""
    sampled: tuple[int, int]
    iterations: tuple[int, int]
    outcome: tuple[str | None, str | None]


def diff(first: Trace, second: Trace) -> list[ThreadDifference]:
    """The threads, matched by path, that are in one trace only, or differ in tokens, iterations or outcome."""
    ours = {story.path: story for story in walk(tree_of(first.events))}
    theirs = {story.path: story for story in walk(tree_of(second.events))}
    differences = (_difference(path, ours.get(path), theirs.get(path)) for path in sorted(ours.keys() | theirs.keys()))
    return [difference for difference in differences if difference is not None]


def _difference(path: ThreadPath, a: ThreadStory | None, b: ThreadStory | None) -> ThreadDifference | None:
    sampled = (a.sampled if a else 0, b.sampled if b else 0)
    iterations = (a.iterations if a else 0, b.iterations if b else 0)
    outcome = (a.outcome if a else None, b.outcome if b else None)
    if a is None or b is None:
        only_in: Literal["first", "second"] = "second" if a is None else "first"
        return ThreadDifference(
            path=path, only_in=only_in, position=None, sampled=sampled, iterations=iterations, outcome=outcome
        )
    ours, theirs = _context(a), _context(b)
    position = next((at for at in range(min(len(ours), len(theirs))) if ours[at] != theirs[at]), None)
    if ours == theirs and sampled[0] == sampled[1] and iterations[0] == iterations[1] and outcome[0] == outcome[1]:
        return None
    if position is not None:
        position += _start(a)
    return ThreadDifference(
        path=path, only_in=None, position=position, sampled=sampled, iterations=iterations, outcome=outcome
    )


def _start(story: ThreadStory) -> int:
    return story.segments[0].position if story.segments else 0


def _context(story: ThreadStory) -> list[int]:
    """The thread's own tokens as they stood at its end, what was cut out of them left out."""
    tokens: list[int] = []
    start = _start(story)
    for segment in story.segments:
        del tokens[segment.position - start :]
        tokens.extend(segment.tokens)
    return tokens
