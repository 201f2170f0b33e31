"""Helpers of the loop's tests."""

from __future__ import annotations

import anyio.lowlevel

TURNS = 12
"""More passes of the event loop than any wake-up takes to reach the coroutine that waits for it."""


async def turn(count: int = TURNS) -> None:
    """Lets everything run that can run without the device."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()
