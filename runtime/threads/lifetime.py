"""How long threads live: one task group for a tree, and a cancel scope for each thread in it.

    scope of the root -- task group of the tree --+-- scope of child (0, 0)
                                                  +-- scope of child (0, 1)
                                                  +-- scope of grandchild (0, 0, 0)

The scopes lie side by side. In groups inside groups, asyncio's cancellation walks down all levels, by recursion and
again for every level that ends: deep trees would take the square of their depth, and from some depth on never end.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple

import anyio
import anyio.abc


class Ending(NamedTuple):
    """How a body left its lifetime."""

    is_swallowed: bool
    """Whether it was cancelled by the lifetime itself, which goes no further."""
    has_run_out: bool
    """Whether that was because its seconds are over."""
    escaped: BaseException | None
    """What is to be raised in place of a body's own error: cancellation from above, or what no thread may keep."""


class Lifetime:
    """The part of a program in which a thread is open. Cancelled, it takes everything below it along, at once."""

    __slots__ = ("_above", "_below", "_gone", "_group", "_inherited", "_is_cancelled", "_own", "_scope")

    def __init__(self, above: Lifetime | None = None) -> None:
        self._above = above
        self._below: dict[Lifetime, None] = {}
        """Started and not ended; a dictionary, because an empty one is small."""
        self._group: anyio.abc.TaskGroup | None = None if above is None else above._group
        self._scope: anyio.CancelScope | None = None
        self._is_cancelled = False
        self._own = math.inf
        """Deadline by its own seconds."""
        self._inherited = math.inf
        """Deadline of what is above it; a root's need not be inherited, since its scope has all others in it."""
        self._gone: anyio.Event | None = None

    @property
    def is_entered(self) -> bool:
        return self._scope is not None

    @property
    def is_cancelled(self) -> bool:
        """Whether it, or a lifetime above it, was told to end; a deadline or a scope outside tells it otherwise."""
        return self._is_cancelled

    async def enter(self, seconds: float | None) -> None:
        """Begins it, for at most so many seconds; in the task that will leave it."""
        self._scope = anyio.CancelScope()
        self._scope.__enter__()
        if self._above is None:
            self._group = anyio.create_task_group()
            await self._group.__aenter__()
        elif self._above._above is not None:
            self._inherited = min(self._above._own, self._above._inherited)
        if seconds is not None:
            self._own = anyio.current_time() + seconds
        deadline = min(self._own, self._inherited)
        if deadline < math.inf:
            self._scope.deadline = deadline
        if self._is_cancelled:
            self._scope.cancel()

    def cancel(self) -> None:
        """Cancels what runs in it and in all lifetimes below, soon."""
        pending = [self]
        while pending:
            lifetime = pending.pop()
            if lifetime._is_cancelled:
                continue
            lifetime._is_cancelled = True
            if lifetime._scope is not None:
                lifetime._scope.cancel()
            pending.extend(lifetime._below)

    def start(
        self, below: Lifetime, main: Callable[[], Coroutine[Any, Any, None]], abandon: Callable[[], None], name: str
    ) -> None:
        """Starts the task of a thread below; its `main` enters and leaves `below`, then calls `below.end()`.

        A task that asyncio itself cancels before its first step never comes to `main`: then `abandon` is called, which
        calls `below.end()` too. This lifetime has been entered.
        """
        assert self._group is not None
        assert self._scope is not None
        self._below[below] = None
        if self._scope.cancel_called:
            below.cancel()
        coroutine = main()
        try:
            self._group.start_soon(lambda: coroutine, name=name)
        except BaseException:
            coroutine.close()
            raise
        with suppress(RuntimeError):
            # Behind the task's first step in the loop's queue; trio has no such loop, and cancels in scopes only.
            asyncio.get_running_loop().call_soon(_look_after, coroutine, abandon)

    def end(self) -> None:
        """Its task is over, whether it was ever entered or not."""
        above = self._above
        if above is None:
            return
        above._below.pop(self, None)
        if above._gone is not None and not above._below:
            above._gone.set()

    async def leave(self, error: BaseException | None) -> Ending:
        """Ends it, after a body that raised `error`, when everything below was cancelled and is gone."""
        # A body's own error is raised as it is, not in the task group's exception group.
        through = None if isinstance(error, Exception) else error
        is_swallowed = False
        try:
            try:
                await self._empty()
            except BaseException as interruption:
                # Cancelled by the event loop itself, which no shield holds back.
                through = interruption
            is_swallowed = await self._close(through)
            escaped = None if is_swallowed else through
        except BaseException as other:
            escaped = other
        finally:
            del through
        # trio's scopes say so of no error, too.
        is_swallowed &= error is not None and not isinstance(error, Exception)
        has_run_out = is_swallowed and not self._is_cancelled and self._own <= self._inherited and self._own < math.inf
        try:
            return Ending(is_swallowed, has_run_out, escaped)
        finally:
            del error, escaped

    async def _empty(self) -> None:
        """Cancels everything below and waits until it is gone."""
        if not self._below:
            return
        for below in self._below:
            below.cancel()
        if self._above is None and self._group is not None:
            # Else asyncio would look for what is to be cancelled from above each time that a thread ends.
            self._group.cancel_scope.shield = True
        with anyio.CancelScope(shield=True):
            while self._below:
                self._gone = anyio.Event()
                await self._gone.wait()

    async def _close(self, error: BaseException | None) -> bool:
        """Leaves the scope; whether that took the error in. Raises what is to be raised instead of it."""
        assert self._scope is not None
        if self._above is not None or self._group is None:
            return bool(self._scope.__exit__(*_raised(error)))
        self._group.cancel_scope.shield = False
        try:
            is_taken = await self._group.__aexit__(*_raised(error))
        except BaseException as other:
            if self._scope.__exit__(*_raised(other)):
                return True
            raise
        return bool(self._scope.__exit__(*_raised(None if is_taken else error))) or bool(is_taken)


def _look_after(coroutine: Coroutine[Any, Any, None], abandon: Callable[[], None]) -> None:
    if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
        coroutine.close()
        abandon()


def _raised(
    error: BaseException | None,
) -> tuple[type[BaseException] | None, BaseException | None, TracebackType | None]:
    """What `__exit__` is called with."""
    return (None, None, None) if error is None else (type(error), error, error.__traceback__)
