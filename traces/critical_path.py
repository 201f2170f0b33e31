"""The longest causally dependent chain of tokens in a recorded tree: what latency could not go below."""

from __future__ import annotations

from traces.tree import Call, ThreadStory, Wait


def critical_path(root: ThreadStory) -> int:
    """Sampled tokens in the longest chain in which each could only be sampled after the one before.

    A thread's tokens follow each other; a child's first one follows the token that closed its spawn; what a parent
    samples after a join follows the last tokens of the children it waited for, of cancelled ones excepted. Received
    tokens cost nothing.
    """
    return _end_of(root, 0)


def _end_of(story: ThreadStory, start: int) -> int:
    """The length of the longest chain that ends with the thread's last token, if `start` tokens precede its first."""
    children = {child.path: child for child in story.children}
    starts = _spawn_positions(story)
    ends: dict[tuple[int, ...], int] = {}
    length = start
    sampled = 0
    waits = list(story.waits)
    for call in sorted(story.calls, key=lambda call: call.index):
        length = _joined(length, _waits_before(waits, call), ends)
        for path, position in starts.items():
            if sampled < position <= sampled + len(call.tokens):
                ends[path] = _end_of(children[path], length + position - sampled)
        sampled += len(call.tokens)
        length += len(call.tokens)
    return _joined(length, waits, ends)


def _joined(length: int, waits: list[Wait], ends: dict[tuple[int, ...], int]) -> int:
    awaited = [path for wait in waits for path in wait.joined.children if path not in wait.joined.cancelled]
    return max([length, *(ends[path] for path in awaited if path in ends)])


def _waits_before(waits: list[Wait], call: Call) -> list[Wait]:
    """Takes those out of `waits`, which are in order, that ended before the call began."""
    taken = []
    while waits and waits[0].ended <= call.started:
        taken.append(waits.pop(0))
    return taken


def _spawn_positions(story: ThreadStory) -> dict[tuple[int, ...], int]:
    """For every child that ran, how many tokens its parent had sampled when the spawn was complete.

    Found by its message among what the parent sampled, the closing token included: events of a spawn come from the
    event loop, so in the trace the device may already be some tokens further.
    """
    written = [token for call in sorted(story.calls, key=lambda call: call.index) for token in call.tokens]
    positions: dict[tuple[int, ...], int] = {}
    at = 0
    for spawn in story.spawns:
        size = len(spawn.tokens)
        found = next((i for i in range(at, len(written) - size) if tuple(written[i : i + size]) == spawn.tokens), None)
        at = len(written) if found is None else found + size + 1
        if spawn.child is not None:
            positions[spawn.child] = at
    return positions
