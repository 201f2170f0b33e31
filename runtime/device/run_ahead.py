"""How far a thread may go on without the scheduler: its lane feeds sampled tokens back by itself.

A thread is asked about where something may be decided: at a token that may end its generate or that its watcher wants
to see, where it needs another page, where its policy gives every token a bound of its own, and where the next token
starts from the last latent state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from runtime.device.kv_cache import KVCache
from runtime.device.sequence import Flight
from runtime.link.commands import Foresight, Generate
from runtime.link.metering import MeteredWatcher

LONGEST = 63
"""Most tokens that a lane goes on with by itself."""


class RunAhead(NamedTuple):
    """What a lane may do by itself."""

    tokens: int
    """Sampled tokens that it may feed back."""
    halts: frozenset[int]
    """Tokens at which it stops."""


NONE = RunAhead(0, frozenset())


def run_ahead_of(flight: Flight, max_context: int, kv_cache: KVCache) -> RunAhead:
    """How far the thread of a flight may go on by itself after it; takes pages for it where there are plenty."""
    sequence, generate = flight.sequence, flight.generate
    request = generate.request
    if len(flight) != 1 or not flight.samples or flight.known or sequence.keeps_entropies:
        return NONE
    changes = frozenset[int]() if request.matcher is None else request.matcher.halts()
    if changes is None:
        # What may follow a token is not known before it.
        return NONE
    if request.stream and isinstance(request.watcher, MeteredWatcher):
        # What a limit cuts off afterwards would have been shown.
        return NONE
    if sequence.depth.carry != "none" or sequence.constant_bound is None or not sequence.span_at(flight.start).sampled:
        return NONE
    most = min(LONGEST, generate.tokens_left(sequence.next_position, max_context) - 1)
    left = generate.iterations_left
    if left is not None:
        most = min(most, left // flight.bounds[0] - 1)
    halts, quiet = _halts(request)
    most = min(most, quiet, kv_cache.longest_alike(sequence) - flight.end)
    if most < 1:
        return NONE
    room = kv_cache.writable_after(sequence, flight.end)
    if room < most:
        kv_cache.grow_ahead(sequence, min(flight.end + most, flight.end + room + 2 * kv_cache.page_size))
        room = kv_cache.writable_after(sequence, flight.end)
    return RunAhead(min(most, room), halts | changes if changes else halts)


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
