"""Which children ran when a trace was recorded: what playback goes by where a policy looked at the load of then."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from policies import SpawnDecision
from runtime.link.commands import ThreadPath
from runtime.link.events import AnyEvent, Spawned


class RecordedSpawns:
    """By thread, what became of each child that its model asked for, in order."""

    def __init__(self, events: Iterable[AnyEvent]) -> None:
        self._decisions: dict[ThreadPath, deque[SpawnDecision]] = {}
        for event in events:
            if isinstance(event, Spawned) and event.by_model:
                decision = SpawnDecision(run=event.child is not None, reason=event.reason)
                self._decisions.setdefault(event.thread, deque()).append(decision)

    def next(self, path: ThreadPath) -> SpawnDecision | None:
        """What became of a thread's next one; None where the trace ends before it, or has it not."""
        recorded = self._decisions.get(path)
        return recorded.popleft() if recorded else None
