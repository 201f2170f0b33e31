"""Things that finish one after another, and the one coroutine that waits for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from runtime.threads.inbox import Wakeup

Finished = TypeVar("Finished")


class Arrivals(Generic[Finished]):
    """What has finished, in that order."""

    __slots__ = ("_needed", "_new_wakeup", "_wakeup", "is_superseded", "is_waiting", "ready")

    def __init__(self, new_wakeup: Callable[[], Wakeup]) -> None:
        self.ready: deque[Finished] = deque()
        """Finished and not yet taken."""
        self.is_waiting = False
        self.is_superseded = False
        """Whether some of it arrives elsewhere, and not here any more."""
        self._new_wakeup = new_wakeup
        self._wakeup: Wakeup | None = None
        self._needed = 0

    def arrive(self, finished: Finished) -> None:
        self.ready.append(finished)
        if self._wakeup is not None and len(self.ready) >= self._needed:
            self._wakeup.set()
            self._wakeup = None

    async def wait(self, count: int) -> None:
        """Waits until `count` are ready, and wakes once for all of them."""
        self.is_waiting = True
        try:
            while len(self.ready) < count:
                self._needed = count
                wakeup = self._wakeup = self._new_wakeup()
                await wakeup.wait()
        finally:
            self.is_waiting = False

    async def next(self) -> Finished:
        await self.wait(1)
        return self.ready.popleft()
