"""Who is answered, who waits, and who is told to come again."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from runtime.serve.refusals import Refusal
from runtime.serve.settings import ServerSettings


class Admission:
    """Places for requests: so many at a time, so many that wait for one, so many a client. Used on the event loop."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._places = anyio.Semaphore(settings.most_requests)
        self._by_client: Counter[str] = Counter()
        self.waiting = 0
        self.is_closing = False
        """Whether nobody new is let in."""

    @property
    def present(self) -> int:
        """Requests that are answered or wait."""
        return self._by_client.total()

    @property
    def answered(self) -> int:
        """Requests that are answered now."""
        return self.present - self.waiting

    @asynccontextmanager
    async def place(self, client: str) -> AsyncIterator[None]:
        """A place for one request, given back at the end; first come, first served. Raises `Refusal` where there is
        none to wait for."""
        if self.is_closing:
            raise Refusal(503, "The server is about to stop. Ask another one, or try again later.", retry_after=5)
        settings = self._settings
        if self._by_client[client] >= settings.most_per_client:
            raise Refusal(
                429,
                f"You have {settings.most_per_client} requests here already. Wait until one of them is answered.",
                retry_after=1,
            )
        if self.answered >= settings.most_requests and self.waiting >= settings.most_waiting:
            raise Refusal(429, f"{self.present} requests are here already. Try again later.", retry_after=1)
        self._by_client[client] += 1
        try:
            self.waiting += 1
            try:
                await self._places.acquire()
            finally:
                self.waiting -= 1
            try:
                yield
            finally:
                self._places.release()
        finally:
            self._by_client[client] -= 1
            if not self._by_client[client]:
                del self._by_client[client]
