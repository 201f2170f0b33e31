"""The longest causally dependent chain of tokens in a recorded tree: what latency could not go below."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from runtime.link import ThreadPath
from traces.tree import ThreadRecord, Wait, walk_threads


def critical_path(root: ThreadRecord) -> int:
    """Sampled tokens in the longest chain in which each could only be sampled after the one before.

    A thread's tokens follow each other; a child's first one follows the token that closed its spawn; what a parent
    samples after a join follows the last tokens of the children it waited for, of cancelled ones excepted. Received
    tokens cost nothing. Time is linear in the tokens, spawns and joins of the tree.
    """
    lengths: dict[ThreadPath, int] = {}
    # Children before their parents.
    for record in reversed(list(walk_threads([root]))):
        lengths[record.path] = _length(record, lengths)
    return lengths[root.path]


def _length(record: ThreadRecord, lengths: Mapping[ThreadPath, int]) -> int:
    """The longest chain that begins with the thread's first token and ends with its last, from those of its children.

    Whatever precedes a thread's first token lengthens all chains alike.
    """
    calls = [(call.started, call.tokens) for call in record.calls]
    spawns = list(_spawn_positions(record, [token for _, tokens in calls for token in tokens]))
    ends: dict[ThreadPath, int] = {}
    length = sampled = spawned = joined = 0
    for started, tokens in calls:
        while joined < len(record.waits) and record.waits[joined].ended <= started:
            length = max(length, _end_of_awaited(record.waits[joined], ends))
            joined += 1
        while spawned < len(spawns) and spawns[spawned][1] <= sampled + len(tokens):
            child, position = spawns[spawned]
            if position > sampled and child in lengths:
                ends[child] = length + position - sampled + lengths[child]
            spawned += 1
        sampled += len(tokens)
        length += len(tokens)
    return max([length, *(_end_of_awaited(wait, ends) for wait in record.waits[joined:])])


def _end_of_awaited(wait: Wait, ends: Mapping[ThreadPath, int]) -> int:
    cancelled = set(wait.joined.cancelled)
    return max((ends.get(path, 0) for path in wait.joined.children if path not in cancelled), default=0)


def _spawn_positions(record: ThreadRecord, written: Sequence[int]) -> Iterator[tuple[ThreadPath, int]]:
    """Every child that ran, and how many tokens its parent had sampled when the spawn was complete; ascending.

    Found by its message among what the parent sampled, the closing token included: events of a spawn come from the
    event loop, so in the trace the device may already be some tokens further.
    """
    at = 0
    for spawn in record.spawns:
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
