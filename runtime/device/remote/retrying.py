"""Asking again: what was received stays received, and the rest is asked for after a pause."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from runtime.console.logs import logger
from runtime.device.remote.chunks import BrokenStream, Heard
from runtime.device.remote.settings import RemoteSettings
from runtime.errors import RemoteError

_log = logger("runtime.remote")


class Patience:
    """How long to wait before the next attempt, and how many are left."""

    def __init__(self, settings: RemoteSettings, address: str) -> None:
        self._settings = settings
        self._address = address
        self._failed = 0

    def progressed(self) -> None:
        """Something came: failures before it do not count any more."""
        self._failed = 0

    def pause(self, error: BrokenStream) -> float:
        """Seconds to wait after a failure. Raises `RemoteError` where it was one too many."""
        self._failed += 1
        settings, after = self._settings, getattr(error, "after", None)
        if self._failed >= settings.attempts:
            raise RemoteError(
                f"{self._address} failed {self._failed} times in a row, at last so: {str(error).rstrip('.')}. See "
                f"whether the server is up, or raise RemoteSettings.attempts."
            ) from error
        if after is not None and after > settings.longest_pause:
            raise RemoteError(
                f"{self._address} wants to be asked again in {after:.0f} s: {str(error).rstrip('.')}. Wait so long, or "
                f"raise RemoteSettings.longest_pause."
            ) from error
        pause = min(settings.longest_pause, settings.first_pause * 2.0 ** (self._failed - 1))
        # By chance, so that those who failed together do not come back together.
        pause = max(pause * random.uniform(0.5, 1.0), after or 0.0)
        _log.warning(
            "asking again", server=self._address, seconds=round(pause, 3), failed=self._failed, error=str(error)
        )
        return pause


async def persistently(
    ask: Callable[[], AsyncGenerator[Heard, None]], patience: Patience, sleep: Callable[[float], Awaitable[None]]
) -> AsyncGenerator[Heard, None]:
    """What a server says to a request, which `ask` makes of what was received so far; asked again where it breaks off.

    Raises `RemoteError`."""
    is_over = False
    while not is_over:
        try:
            async with aclosing(ask()) as stream:
                async for heard in stream:
                    if heard.tokens:
                        patience.progressed()
                    is_over |= heard.finish is not None
                    yield heard
            return
        except BrokenStream as error:
            if is_over:
                return
            pause = patience.pause(error)
        await sleep(pause)
