"""Who may ask the server now: the first in order of those who wait."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from runtime.link.commands import ThreadPath


class Places:
    """So many requests at a time, given by priority and then depth-first by path. Of one event loop of asyncio."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: list[tuple[int, ThreadPath, int, asyncio.Future[None]]] = []
        self._number = 0

    @property
    def waiting(self) -> int:
        return sum(not place.done() for *_, place in self._waiting)

    @asynccontextmanager
    async def place(self, priority: int, path: ThreadPath) -> AsyncIterator[None]:
        """Cancelled while waiting, nothing is taken."""
        if self._free:
            self._free -= 1
        else:
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._number += 1
            heapq.heappush(self._waiting, (-priority, path, self._number, place))
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():
                    self._give_back()
                raise
        try:
            yield
        finally:
            self._give_back()

    def _give_back(self) -> None:
        while self._waiting:
            place = heapq.heappop(self._waiting)[-1]
            if not place.done():
                place.set_result(None)
                return
        self._free += 1
