"""What tests let children do."""

from __future__ import annotations

import anyio

from runtime import ReasoningThread
from runtime.threads.thread import Program


def says(message: str | None, after: anyio.Event | None = None, tokens: int = 1) -> Program:
    """A child's program: samples some tokens and returns the message."""

    async def run(thread: ReasoningThread) -> str | None:
        await thread.generate(tokens)
        if after is not None:
            await after.wait()
        return message

    return run


def fails(error: Exception) -> Program:
    async def run(thread: ReasoningThread) -> str | None:
        raise error

    return run
