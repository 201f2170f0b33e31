"""Accounts: what a thread and everything below it has used, and what its limits leave.

    report -> account of the thread -> its parent's -> ... -> the engine's

A limit holds for a whole subtree, so what is left for a call is the least of what the limits on its way up leave.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import Literal

import anyio

from policies import Limits
from runtime.errors import LimitExceeded
from runtime.link.commands import Failed, Finished, ThreadPath
from runtime.link.metering import Meter
from runtime.threads.results import Tally, Usage

NO_LIMITS = Limits(tree_depth=None)


class Trees:
    """An engine's trees: those that run, and what those took that have ended."""

    __slots__ = ("_ended", "_generated", "running")

    def __init__(self) -> None:
        self.running: dict[ThreadPath, Account] = {}
        self._ended = 0
        self._generated = 0

    def end(self, root: Account) -> None:
        if self.running.pop(root.path, None) is not None and root.total.generated:
            self._ended += 1
            self._generated += root.total.generated

    @property
    def mean_generated(self) -> float | None:
        """Tokens that those sampled that ended and had any; None before the first."""
        return self._generated / self._ended if self._ended else None


class Account:
    """What one thread spends, alone and with everything below it, under its limits. Used on the event loop only."""

    __slots__ = (
        "_is_beginning",
        "_settled",
        "beginning",
        "ended",
        "is_calling",
        "limits",
        "meter",
        "own",
        "parent",
        "path",
        "pending",
        "reasons",
        "running",
        "started",
        "total",
        "trees",
    )

    def __init__(self, path: ThreadPath, limits: Limits = NO_LIMITS, parent: Account | None = None) -> None:
        self.path = path
        self.limits = limits
        self.parent = parent
        self.own = Tally()
        self.total = Tally()
        self.reasons: list[str] = []
        """Why each of the thread's own calls ended, but for those that failed."""
        self.meter = None if limits.tokens is None else Meter(limits.tokens)
        self.running = 0
        """Threads of the subtree that are open."""
        self.pending = 0
        """Calls of the subtree whose end the device has not reported."""
        self.beginning = 0
        """Children in the subtree that are open and have neither made a call nor waited for children of theirs."""
        self._is_beginning = False
        self.is_calling = False
        """Whether a call of the thread itself is pending."""
        self.trees = Trees()
        """Of the engine's account: those of its trees."""
        self.started = perf_counter()
        self.ended: float | None = None
        self._settled: anyio.Event | None = None

    def upwards(self) -> Iterator[Account]:
        """This account, its parent's, and so on."""
        account: Account | None = self
        while account is not None:
            yield account
            account = account.parent

    def tree(self) -> Account:
        """The account of the root thread above."""
        account = self
        while account.parent is not None and account.parent.path:
            account = account.parent
        return account

    def engine(self) -> Account:
        """The account of the whole engine."""
        account = self
        while account.parent is not None:
            account = account.parent
        return account

    def open_thread(self) -> None:
        self.own.threads = 1
        is_root = self.tree() is self
        self._is_beginning = not is_root
        for account in self.upwards():
            account.total.threads += 1
            account.running += 1
            account.beginning += not is_root
        if is_root:
            self.engine().trees.running[self.path] = self

    def end(self) -> None:
        """The clock stops."""
        self.ended = perf_counter()

    def end_thread(self) -> None:
        self.end()
        self.has_begun()
        for account in self.upwards():
            account.running -= 1
        if self.tree() is self:
            self.engine().trees.end(self)

    def see_length(self, length: int) -> None:
        """The thread's context has grown to `length` tokens."""
        self.own.max_context = max(self.own.max_context, length)
        for account in self.upwards():
            if account.total.max_context >= length:
                return
            account.total.max_context = length

    def count_request(self, granted: bool) -> None:
        self.own.spawns_requested += 1
        self.own.spawns_granted += granted
        for account in self.upwards():
            account.total.spawns_requested += 1
            account.total.spawns_granted += granted

    def count_tool_call(self) -> None:
        self.own.tool_calls += 1
        for account in self.upwards():
            account.total.tool_calls += 1

    def begin_call(self) -> None:
        self.has_begun()
        self.is_calling = True
        for account in self.upwards():
            account.pending += 1

    def has_begun(self) -> None:
        """The thread has done something since it was opened; more often does nothing."""
        if self._is_beginning:
            self._is_beginning = False
            for account in self.upwards():
                account.beginning -= 1

    @property
    def speaking(self) -> int:
        """Threads of the subtree that generate or are about to."""
        return self.pending + self.beginning

    def end_call(self, report: Finished | Failed) -> list[Account]:
        """Counts a call's work. Returns the accounts whose iterations ran out with it."""
        exhausted = []
        self.is_calling = False
        self.own.add(report.work)
        if isinstance(report, Finished):
            self.reasons.append(report.reason)
        for account in self.upwards():
            account.pending -= 1
            most = account.limits.iterations
            was_left = most is not None and account.total.iterations < most
            account.total.add(report.work)
            if most is not None and was_left and account.total.iterations >= most:
                exhausted.append(account)
            if account.pending == 0 and account._settled is not None:
                account._settled.set()
                account._settled = None
        return exhausted

    async def settled(self) -> None:
        """Waits until every call of the subtree is reported and counted; at once where none is pending."""
        while self.pending:
            if self._settled is None:
                self._settled = anyio.Event()
            await self._settled.wait()

    def meters(self) -> tuple[Meter, ...]:
        return tuple(account.meter for account in self.upwards() if account.meter is not None)

    def tokens_left(self) -> int | None:
        """Tokens that may still be sampled; None without a limit. Raises `LimitExceeded` where nothing is left."""
        return self._least(
            "tokens",
            [
                (account, account.limits.tokens, max(account.total.generated, account.meter.fed))
                for account in self.upwards()
                if account.limits.tokens is not None and account.meter is not None
            ],
        )

    def iterations_left(self) -> int | None:
        """Token-iterations that may still be computed; None without a limit. Raises like `tokens_left`."""
        return self._least(
            "iterations",
            [
                (account, account.limits.iterations, account.total.iterations)
                for account in self.upwards()
                if account.limits.iterations is not None
            ],
        )

    def _least(self, name: Literal["tokens", "iterations"], spent: list[tuple[Account, int, int]]) -> int | None:
        least = None
        for account, most, used in spent:
            if used >= most:
                raise LimitExceeded(
                    f"Thread {self.path} has no {name} left: {account.whose(self)} limit is {most} {name}, and "
                    f"{used} are spent. Raise Limits.{name}, or bound calls with max_tokens."
                )
            least = most - used if least is None else min(least, most - used)
        return least

    def refusal(self) -> str:
        """Why the limits forbid one more child of this thread; empty where they allow it."""
        for levels, account in enumerate(self.upwards(), start=1):
            limits = account.limits
            if limits.threads is not None and account.total.threads >= limits.threads:
                return f"{account.whose(self)} limit is {limits.threads} threads, and all were opened"
            if limits.tree_depth is not None and levels > limits.tree_depth:
                return f"{account.whose(self)} limit is a tree depth of {limits.tree_depth} below it"
        return ""

    def tool_refusal(self) -> str:
        """Why the limits forbid one more call of a tool by this thread; empty where they allow it."""
        for account in self.upwards():
            most = account.limits.tool_calls
            if most is not None and account.total.tool_calls >= most:
                return f"{account.whose(self)} limit is {most} tool calls, and all were made"
        return ""

    def whose(self, asking: Account) -> str:
        """Whose limit it is, in words, as seen from the thread that asks."""
        if self is asking:
            return "its own"
        return f"thread {self.path}'s" if self.path else "the run's"

    def usage(self) -> Usage:
        """Of the whole subtree."""
        return self._usage(self.total)

    def own_usage(self) -> Usage:
        """Of this thread alone."""
        return self._usage(self.own)

    def _usage(self, tally: Tally) -> Usage:
        return tally.usage((perf_counter() if self.ended is None else self.ended) - self.started)
