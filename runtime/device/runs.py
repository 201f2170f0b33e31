"""How far a thread may go on without the scheduler: its lane feeds sampled tokens back by itself.

A thread is asked about where something may be decided: at a token that may end its call or that its watcher wants to
see, where it needs another page, where its policy gives every token a bound of its own, and where the next token
starts from the last latent state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from runtime.commands import Foresight, Generate
from runtime.device.bounds import constant_bound
from runtime.device.entering import Group
from runtime.device.memory import ThreadMemory

LONGEST = 63
"""Most tokens that a lane goes on with by itself."""

AMPLE = 4
"""Pages are taken ahead while one in so many is free."""


class Freedom(NamedTuple):
    """What a lane may do by itself."""

    tokens: int
    """Sampled tokens that it may feed back."""
    halts: frozenset[int]
    """Tokens at which it stops."""


NONE = Freedom(0, frozenset())


def freedom_of(group: Group, bound: int, context: int, mean_recurrence: int, memory: ThreadMemory) -> Freedom:
    """How far the thread of a group may go on by itself after it; takes pages for it where there are plenty."""
    sequence, request = group.sequence, group.call.request
    if group.end - group.start != 1 or not group.samples or group.known or request.stream or request.entropies:
        return NONE
    if sequence.depth.carry != "none":
        return NONE
    if constant_bound(sequence.depth, mean_recurrence) is None or not sequence.span_at(group.start).sampled:
        return NONE
    most = min(LONGEST, request.max_tokens - group.call.sampled - 1, context - len(sequence.tokens) - 1)
    left = group.call.iterations_left
    if left is not None:
        most = min(most, left // bound - 1)
    halts, quiet = _halts(request)
    most = min(most, quiet)
    if most < 1:
        return NONE
    room = len(sequence.pages) * memory.page_size - group.end
    if room < most and memory.pool.free * AMPLE > memory.pool.size:
        memory.grow_ahead(sequence, min(group.end + most, group.end + room + 2 * memory.page_size))
        room = len(sequence.pages) * memory.page_size - group.end
    return Freedom(min(most, room), halts)


def _halts(request: Generate) -> tuple[frozenset[int], int]:
    """The tokens at which something may happen, and how many others may pass before anything else does."""
    watcher = request.watcher
    if watcher is None:
        return request.stop_tokens, LONGEST
    # Looked up by name: `isinstance` of a protocol takes longer than all the rest of this file.
    foresee: Callable[[], Foresight | None] | None = getattr(watcher, "foresee", None)
    foresight = None if foresee is None else foresee()
    if foresight is None:
        return request.stop_tokens, 0
    return foresight.tokens | request.stop_tokens if request.stop_tokens else foresight.tokens, foresight.quiet
