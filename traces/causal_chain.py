"""The longest causally dependent chain of tokens in a recorded tree: what latency could not go below."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from runtime.link import ThreadPath
from traces.tree import ThreadRecord, Wait, walk_threads


class _Chain(NamedTuple):
    """The longest chain up to some token of a thread."""

    length: int
    """Sampled tokens."""
    via: _Via | None = None
    """The child it came through last; None where all of it is the thread's own."""


class _Via(NamedTuple):
    child: ThreadPath
    before: _Via | None
    """What the chain had come through when the child was spawned."""


def critical_path(root: ThreadRecord) -> int:
    """Sampled tokens in the longest chain in which each could only be sampled after the one before.

    A thread's tokens follow each other; a child's first one follows the token that closed its spawn; what a parent
    samples after a join follows the last tokens of the children it waited for, of cancelled ones excepted. Received
    tokens cost nothing. Time is linear in the tokens, spawns and joins of the tree.
    """
    return _chains(root)[root.path].length


def critical_threads(root: ThreadRecord) -> set[ThreadPath]:
    """The threads that the longest chain goes through: the root, and the children that it had to wait for."""
    chains, found, stack = _chains(root), set[ThreadPath](), [root.path]
    while stack:
        path = stack.pop()
        found.add(path)
        via = chains[path].via
        while via is not None:
            stack.append(via.child)
            via = via.before
    return found


def _chains(root: ThreadRecord) -> dict[ThreadPath, _Chain]:
    """By thread, the longest chain from its first token to its last."""
    chains: dict[ThreadPath, _Chain] = {}
    # Children before their parents.
    for record in reversed(list(walk_threads([root]))):
        chains[record.path] = _chain(record, chains)
    return chains


def _chain(record: ThreadRecord, chains: Mapping[ThreadPath, _Chain]) -> _Chain:
    """A thread's longest chain, from those of its children.

    Whatever precedes a thread's first token lengthens all chains alike.
    """
    calls = [(call.started, call.tokens) for call in record.calls]
    spawns = list(_spawn_positions(record, [token for _, tokens in calls for token in tokens]))
    ends: dict[ThreadPath, _Chain] = {}
    chain = _Chain(0)
    sampled = spawned = joined = 0
    for started, tokens in calls:
        while joined < len(record.waits) and record.waits[joined].ended <= started:
            chain = _after(record.waits[joined], chain, ends)
            joined += 1
        while spawned < len(spawns) and spawns[spawned][1] <= sampled + len(tokens):
            child, position = spawns[spawned]
            if position > sampled and child in chains:
                length = chain.length + position - sampled + chains[child].length
                ends[child] = _Chain(length, _Via(child, chain.via))
            spawned += 1
        sampled += len(tokens)
        chain = chain._replace(length=chain.length + len(tokens))
    for wait in record.waits[joined:]:
        chain = _after(wait, chain, ends)
    return chain


def _after(wait: Wait, chain: _Chain, ends: Mapping[ThreadPath, _Chain]) -> _Chain:
    """The longer of the parent's own chain and those of the children it waited for."""
    cancelled = set(wait.joined.cancelled)
    awaited = (ends[path] for path in wait.joined.children if path in ends and path not in cancelled)
    return max((chain, *awaited), key=lambda each: each.length)


def _spawn_positions(record: ThreadRecord, written: Sequence[int]) -> Iterator[tuple[ThreadPath, int]]:
    """Every child that ran, and how many tokens its parent had sampled when the spawn was complete; ascending.

    Found by its message among what the parent sampled, the closing token included: events of a spawn come from the
    event loop, so in the trace the device may already be some tokens further.
    """
    at = 0
    for spawn in record.thread_spawns:
        end = end_of_first(spawn.tokens, written, at)
        at = len(written) if end is None or end == len(written) else end + 1
        if spawn.child is not None:
            yield spawn.child, at


def end_of_first(message: Sequence[int], written: Sequence[int], start: int) -> int | None:
    """Where the first `message` in `written`, from `start` on, ends; None without one. (Knuth, Morris and Pratt.)"""
    borders = [0]
    matched = 0
    for token in message[1:]:
        while matched and token != message[matched]:
            matched = borders[matched - 1]
        matched += token == message[matched]
        borders.append(matched)
    matched = 0
    if not message:
        return start
    for at in range(start, len(written)):
        while matched and written[at] != message[matched]:
            matched = borders[matched - 1]
        matched += written[at] == message[matched]
        if matched == len(message):
            return at + 1
    return None
