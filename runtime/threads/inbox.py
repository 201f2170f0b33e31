"""The way back: reports of the device thread reach the coroutines that wait for them, in one hop per delivery.

deliver() on the device thread -> one callback on the event loop -> the calls concerned -> their coroutines
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, cast

import anyio
import anyio.lowlevel

from runtime.errors import EngineFailed, described
from runtime.link.commands import (
    Answered,
    DeviceFailed,
    Emitted,
    Failed,
    Finished,
    Report,
    Signalled,
    ThreadPath,
    ToolAnswered,
)
from runtime.link.metering import MeteredWatcher
from runtime.threads.accounts import Account

GenerateReport = Emitted | Signalled | Finished | Failed


class Wakeup(Protocol):
    """Happens once; one coroutine waits for it."""

    def set(self) -> object: ...

    async def wait(self) -> None: ...


class _FutureWakeup:
    """An event of asyncio's that costs a tenth of `anyio.Event`, of which every parked thread holds one."""

    __slots__ = ("_future",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._future: asyncio.Future[None] = loop.create_future()

    def set(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    async def wait(self) -> None:
        await self._future


class PendingGenerate:
    """One generate that was sent: what was reported of it and not yet taken by its coroutine."""

    __slots__ = (
        "_new_wakeup",
        "_reports",
        "_wakeup",
        "_wants_reports",
        "account",
        "bounded_by_limit",
        "cut",
        "is_over",
        "metered",
        "path",
    )

    def __init__(
        self,
        path: ThreadPath,
        account: Account,
        new_wakeup: Callable[[], Wakeup],
        *,
        wants_reports: bool = False,
        bounded_by_limit: bool = False,
        metered: MeteredWatcher | None = None,
    ) -> None:
        self.path = path
        self.account = account
        self.bounded_by_limit = bounded_by_limit
        """Whether a token limit, and not the caller, set its bound."""
        self.metered = metered
        self.cut = False
        """Whether it was interrupted because an iteration limit above it ran out."""
        self.is_over = False
        """Whether its last report has come."""
        self._wants_reports = wants_reports
        self._new_wakeup = new_wakeup
        self._reports: deque[GenerateReport] | None = None
        self._wakeup: Wakeup | None = None

    def give(self, report: GenerateReport) -> None:
        """Keeps a report for the coroutine and wakes it; signals nobody asked for are dropped."""
        if isinstance(report, Finished | Failed):
            self.is_over = True
        elif not self._wants_reports:
            return
        if self._reports is None:
            self._reports = deque()
        self._reports.append(report)
        if self._wakeup is not None:
            self._wakeup.set()
            self._wakeup = None

    async def next(self) -> GenerateReport:
        """The next report, oldest first. Cancelled while waiting, it has taken nothing."""
        while not self._reports:
            wakeup = self._wakeup = self._new_wakeup()
            await wakeup.wait()
        return self._reports.popleft()


class Awaited:
    """The answer to one request, which one coroutine waits for."""

    __slots__ = ("_wakeup", "error", "number")

    def __init__(self, number: int, wakeup: Wakeup) -> None:
        self.number = number
        self.error: Exception | None = None
        self._wakeup = wakeup

    def give(self, error: Exception | None) -> None:
        self.error = error
        self._wakeup.set()

    async def wait(self) -> None:
        """Raises what the request was refused with."""
        await self._wakeup.wait()
        if self.error is not None:
            raise self.error


class AwaitedTool:
    """The result of one call of a tool, which a device that plays a trace back gives."""

    __slots__ = ("_error", "_text", "_wakeup")

    def __init__(self, wakeup: Wakeup) -> None:
        self._text = ""
        self._error: Exception | None = None
        self._wakeup = wakeup

    def give(self, text: str, error: Exception | None) -> None:
        self._text, self._error = text, error
        self._wakeup.set()

    async def wait(self) -> str:
        """The result as text. Raises what the call failed of."""
        await self._wakeup.wait()
        if self._error is not None:
            raise self._error
        return self._text


class _TrioToken(Protocol):
    def run_sync_soon(self, function: Callable[[], Any]) -> None: ...


class Inbox:
    """Where the reports of one device arrive. Made on the event loop; only `deliver` and `hop` run elsewhere."""

    def __init__(self, exhaust: Callable[[Account], None]) -> None:
        """`exhaust` is called for an account whose iterations ran out while other calls may run under it."""
        native = anyio.lowlevel.current_token().native_token
        self._soon: Callable[[Callable[[], None]], object] = (
            native.call_soon_threadsafe
            if isinstance(native, asyncio.AbstractEventLoop)
            else cast(_TrioToken, native).run_sync_soon
        )
        self.new_wakeup: Callable[[], Wakeup] = (
            partial(_FutureWakeup, native) if isinstance(native, asyncio.AbstractEventLoop) else anyio.Event
        )
        self._exhaust = exhaust
        self._delivered: deque[list[Report]] = deque()
        self._is_scheduled = False
        self._calls: dict[ThreadPath, list[PendingGenerate]] = {}
        self._stranded: dict[ThreadPath, Exception] = {}
        self._awaited: dict[int, Awaited] = {}
        self._tools: dict[ThreadPath, AwaitedTool] = {}
        self._requests = 0
        self.open: set[ThreadPath] = set()
        """Threads the device was told to open and not yet to close."""
        self.failure: BaseException | None = None
        """What ended the device."""

    def deliver(self, reports: list[Report]) -> None:
        """Takes the reports of one tick; on the device thread."""
        self._delivered.append(reports)
        # The loop clears the flag before it empties the queue, so that a set flag means it will still see these.
        if not self._is_scheduled:
            self._is_scheduled = True
            self.hop(self._dispatch)

    def hop(self, function: Callable[[], None]) -> None:
        """Runs a function on the event loop soon, from any thread; never where the loop has ended."""
        with suppress(RuntimeError):
            self._soon(function)

    def expect(self, call: PendingGenerate) -> None:
        """Reports of the call's thread are its own once those of the thread's earlier calls are over."""
        self._calls.setdefault(call.path, []).append(call)
        call.account.begin_call()

    def expect_answer(self) -> Awaited:
        """The answer to a request that is about to be sent, under a number of its own."""
        self._requests += 1
        awaited = self._awaited[self._requests] = Awaited(self._requests, self.new_wakeup())
        return awaited

    def expect_tool(self, path: ThreadPath) -> AwaitedTool:
        """The result of a tool's call that is about to be sent."""
        awaited = self._tools[path] = AwaitedTool(self.new_wakeup())
        return awaited

    def active_calls(self) -> list[PendingGenerate]:
        """Calls whose last report has not come, abandoned ones included."""
        return [call for calls in self._calls.values() for call in calls]

    def stranded_error(self, path: ThreadPath) -> Exception | None:
        """What a thread failed of while it had no call."""
        return self._stranded.get(path)

    def forget(self, path: ThreadPath) -> None:
        """The thread is closed; its calls still get their reports."""
        self.open.discard(path)
        self._stranded.pop(path, None)

    def fail(self, make_error: Callable[[], Exception]) -> None:
        """Ends every call with an error of its own, and stops waiting for the device's reports."""
        calls = self.active_calls()
        self._calls.clear()
        for call in calls:
            failed = Failed(call.path, make_error())
            call.account.end_call(failed)
            call.give(failed)
        self.fail_requests(make_error)

    def fail_requests(self, make_error: Callable[[], Exception]) -> None:
        """Answers every request with an error of its own."""
        while self._awaited:
            self._awaited.popitem()[1].give(make_error())
        while self._tools:
            self._tools.popitem()[1].give("", make_error())

    def _dispatch(self) -> None:
        self._is_scheduled = False
        while self._delivered:
            for report in self._delivered.popleft():
                self._dispatch_one(report)

    def _dispatch_one(self, report: Report) -> None:
        if isinstance(report, DeviceFailed):
            self.failure = report.error
            self.fail(lambda: engine_failed(report.error))
            return
        if isinstance(report, Answered):
            awaited = self._awaited.pop(report.number, None)
            if awaited is not None:
                awaited.give(report.error)
            return
        if isinstance(report, ToolAnswered):
            tool = self._tools.pop(report.thread, None)
            if tool is not None:
                tool.give(report.text, report.error)
            return
        calls = self._calls.get(report.thread)
        if not calls:
            if isinstance(report, Failed) and report.thread in self.open:
                self._stranded.setdefault(report.thread, report.error)
            return
        call = calls[0]
        if isinstance(report, Finished | Failed):
            del calls[0]
            if not calls:
                del self._calls[report.thread]
            exhausted = call.account.end_call(report)
            call.give(report)
            for account in exhausted:
                self._exhaust(account)
        else:
            call.give(report)


def engine_failed(cause: BaseException) -> EngineFailed:
    """The error that a waiter gets when the device has ended with `cause`."""
    error = EngineFailed(f"The device failed and the engine with it: {described(cause)}. Open a new engine.")
    error.__cause__ = cause
    return error
