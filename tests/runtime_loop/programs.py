"""What tests let children do, and what is left of them."""

from __future__ import annotations

import anyio

from runtime import Child, ReasoningThread
from runtime.threads.child import task_of
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


def text_of(child: Child) -> str:
    """Of the child's whole context, also when it has ended."""
    context = task_of(child).context
    return context.session.decode(context.tokens)
