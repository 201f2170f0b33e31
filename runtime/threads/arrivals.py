"""Things that finish one after another, and the one coroutine that waits for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from runtime.threads.inbox import Event

Finished = TypeVar("Finished")


class Arrivals(Generic[Finished]):
    """What has finished, in that order."""

    __slots__ = ("_event", "_needed", "_new_event", "is_waiting", "ready")

    def __init__(self, new_event: Callable[[], Event]) -> None:
        self.ready: deque[Finished] = deque()
        """Finished and not yet taken."""
        self.is_waiting = False
        self._new_event = new_event
        self._event: Event | None = None
        self._needed = 0

    def arrive(self, finished: Finished) -> None:
        self.ready.append(finished)
        if self._event is not None and len(self.ready) >= self._needed:
            self._event.set()
            self._event = None

    async def wait(self, count: int) -> None:
        """Waits until `count` are ready, and wakes once for all of them."""
        self.is_waiting = True
        try:
            while len(self.ready) < count:
                self._needed = count
                event = self._event = self._new_event()
                await event.wait()
        finally:
            self.is_waiting = False

    async def next(self) -> Finished:
        await self.wait(1)
        return self.ready.popleft()
