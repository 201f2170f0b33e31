"""How long a tree's longest chain of tokens is that had to wait for one another."""

from __future__ import annotations

from collections.abc import Iterable

from traces import events as ev
from traces.events import AnyEvent, ThreadPath


def critical_paths(events: Iterable[AnyEvent]) -> dict[ThreadPath, int]:
    """Sampled tokens on the longest causally dependent chain of each tree, by path of its root.

    A token depends on the one before it in its thread, a child's first on the last that its parent had sampled when
    it spawned, and what follows a join on the last token of every child that was waited for. Received tokens are
    computed side by side and count nothing. Children that were cancelled at a join count as far as they had come.
    """
    length: dict[ThreadPath, int] = {}
    for event in events:
        match event:
            case ev.ThreadOpened(thread=path):
                length[path] = length.get(path[:-1], 0) if len(path) > 1 else 0
            case ev.Sampled(thread=path):
                length[path] += 1
            case ev.Joined(thread=path, children=children):
                length[path] = max(length[path], *(length.get(child, 0) for child in children), 0)
    roots: dict[ThreadPath, int] = {}
    for path, tokens in length.items():
        roots[path[:1]] = max(roots.get(path[:1], 0), tokens)
    return roots
