"""Threads that an engine has run, as a trace tells them: what exit rules are calibrated on."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from policies.depth.base import Role
from traces import ThreadStory, Trace, tree_of, walk
from traces.tree import Call


class Group(msgspec.Struct, frozen=True):
    """Tokens `start .. end` that entered the device together and leave it together; a sampled token is alone."""

    start: int
    end: int


class ThreadTokens(msgspec.Struct, frozen=True, kw_only=True):
    """One thread's tokens up to the last that it sampled; all but that one were computed."""

    tokens: tuple[int, ...]
    is_sampled: tuple[bool, ...]
    """Which of `tokens` the thread sampled itself."""
    groups: tuple[Group, ...]
    """Of the computed tokens, in order, without gaps."""
    role: Role
    tree_depth: int


def threads_in(trace: Trace) -> list[ThreadTokens]:
    """Every thread of a trace that sampled anything, in order of path.

    Threads that inherited a context (forks) are left out: another one computed their first tokens. A thread that
    spawned counts as a parent from its first token on.
    """
    chunk = int(trace.header.engine["chunk"])
    found = (_thread(story, chunk) for story in walk(tree_of(trace.events)) if story.inherits is None)
    return [thread for thread in found if thread is not None]


def _thread(story: ThreadStory, chunk: int) -> ThreadTokens | None:
    tokens: list[int] = []
    is_sampled: list[bool] = []
    groups: list[Group] = []
    for segment in story.segments:
        is_call = isinstance(segment, Call)
        # A protocol may cut what the thread had said.
        del tokens[segment.position :], is_sampled[segment.position :]
        groups = [group for group in groups if group.end <= segment.position]
        groups += _groups(len(tokens), len(segment.tokens), 1 if is_call else chunk)
        tokens += segment.tokens
        is_sampled += [is_call] * len(segment.tokens)
    if True not in is_sampled:
        return None
    last = len(tokens) - 1 - is_sampled[::-1].index(True)
    return ThreadTokens(
        tokens=tuple(tokens[: last + 1]),
        is_sampled=tuple(is_sampled[: last + 1]),
        groups=tuple(group for group in groups if group.end <= last),
        role="root" if len(story.path) == 1 else "parent" if story.spawns else "child",
        tree_depth=len(story.path) - 1,
    )


def _groups(start: int, count: int, size: int) -> Iterator[Group]:
    for first in range(start, start + count, size):
        yield Group(first, min(first + size, start + count))
