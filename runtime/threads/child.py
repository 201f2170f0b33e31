"""Child threads: the task that runs one, how it ends, and the handle that its parent holds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from enum import Enum
from typing import Any

import anyio

from runtime.console.logs import logger
from runtime.errors import ThreadStateError
from runtime.link.commands import ThreadPath
from runtime.threads.arrivals import Arrivals
from runtime.threads.context import Context
from runtime.threads.lifetime import Lifetime
from runtime.threads.opening import Opening, append_messages
from runtime.threads.results import Answer, Outcome, Usage, answered

_log = logger("runtime.threads")


class ChildStatus(Enum):
    """How far a child has come, as anyio's `TaskHandle` says it."""

    RUNNING = "running"
    """It has not ended."""
    CANCELLING = "cancelling"
    """Its `cancel()`, or that of a thread above it, was called, and it has not ended."""
    FINISHED = "finished"
    """It has ended by itself, with a message or without one."""
    FAILED = "failed"
    """It has ended with an error."""
    CANCELLED = "cancelled"
    """It has ended because it was cancelled."""


class ChildTask:
    """What runs one child thread; its parent and whoever joins it know it by this."""

    __slots__ = (
        "_ended",
        "_prompt_length",
        "_prompt_start",
        "answer",
        "arrivals",
        "context",
        "error",
        "is_error_raised",
        "is_joined",
        "is_tool",
        "lifetime",
    )

    def __init__(self, context: Context, lifetime: Lifetime, prompt_length: int, *, is_tool: bool = False) -> None:
        self.context = context
        self.is_tool = is_tool
        """Whether it is a call of a tool, whose context is empty and never opened."""
        self.lifetime = lifetime
        self.answer: Answer | None = None
        """How it ended; None until then."""
        self.error: Exception | None = None
        """What it failed of; raised by whoever joins or awaits it."""
        self.is_error_raised = False
        """Whether somebody who awaited it has got its error."""
        self.is_joined = False
        self.arrivals: Arrivals[ChildTask] | None = None
        self._ended: anyio.Event | None = None
        """For those who await it; none of whom there may be, or several."""
        self._prompt_length = prompt_length
        self._prompt_start = 0

    @property
    def path(self) -> ThreadPath:
        return self.context.path

    @property
    def is_done(self) -> bool:
        return self.answer is not None

    @property
    def status(self) -> ChildStatus:
        if self.answer is None:
            return ChildStatus.CANCELLING if self.lifetime.is_cancelled else ChildStatus.RUNNING
        if self.error is not None:
            return ChildStatus.FAILED
        return ChildStatus.CANCELLED if self.answer.reason == "cancelled" else ChildStatus.FINISHED

    @property
    def prompt(self) -> tuple[int, ...]:
        """Token ids of the message it was given."""
        return tuple(self.context.tokens[self._prompt_start : self._prompt_start + self._prompt_length])

    def receive_prompt(self, prompt: tuple[int, ...]) -> None:
        """Appends what the child is to see; a fork sees it after what it inherited."""
        self._prompt_start = len(self.context.tokens)
        self.context.extend(prompt)

    async def receive_messages(self, opening: Opening) -> None:
        """The same for messages; in the child's task. Raises like `append_messages`."""
        self._prompt_start = len(self.context.tokens)
        await append_messages(self.context, opening)
        self._prompt_length = len(self.context.tokens) - self._prompt_start

    async def main(self, work: Callable[[], Awaitable[Outcome | None]]) -> None:
        """The child's task: `work` enters its thread and gives what it returned, None where it was cancelled.

        Errors are kept for the joiner, and cancellation ends here: only what ends programs, such as
        `KeyboardInterrupt`, goes on into the tree's task group.
        """
        outcome: Outcome | None = None
        try:
            outcome = await work()
        except Exception as error:
            self.error = error
        except anyio.get_cancelled_exc_class():
            # Whoever is cancelled along with this child has a scope of its own that says so.
            pass
        finally:
            if self.error is not None:
                _log.debug("child failed", thread=self.path, error=repr(self.error))
            self._end(outcome or Outcome((), "", "nothing" if self.error else "cancelled"))

    def abandon(self) -> None:
        """Ends it, as cancelled, when its task has never come to `main`."""
        self.context.close()
        self._end(Outcome((), "", "cancelled"))

    def _end(self, outcome: Outcome) -> None:
        self.answer = answered(outcome, self.path, self.context.account.usage())
        self.lifetime.end()
        if self.arrivals is not None:
            self.arrivals.arrive(self)
        if self._ended is not None:
            self._ended.set()

    async def ended(self) -> Answer:
        """Waits for its end, whoever else does too. Raises what it failed of."""
        if self._ended is None:
            self._ended = anyio.Event()
            if self.is_done:
                self._ended.set()
        await self._ended.wait()
        if self.error is not None:
            self.is_error_raised = True
            raise self.error
        return self.given()

    def given(self) -> Answer:
        """The answer of a child that has ended."""
        if self.answer is None:
            raise ThreadStateError(f"Child {self.path} has not ended. Wait for it with join, first or await.")
        return self.answer


class Child:
    """The handle of a child thread, as `spawn` and `fork` give it, or of a tool's call, as `call` does.

    `join` and `first` on its parent append what it returns. `await child` waits for its end and gives its `Answer`,
    whose reason is "cancelled" where it was: any coroutine may, any number of times, and nothing is joined or appended.
    It raises what the child failed of, which then leaves the parent's `async with` no more. Cancelled, it leaves the
    child as it is.
    """

    __slots__ = ("_task",)

    def __init__(self, task: ChildTask) -> None:
        """Made by `spawn`, `fork` and `call`."""
        self._task = task

    def __repr__(self) -> str:
        return f"<Child {self.path} {self.status.value}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Child) and other._task is self._task

    def __hash__(self) -> int:
        return hash(self._task)

    def __await__(self) -> Generator[Any, Any, Answer]:
        return self._task.ended().__await__()

    @property
    def path(self) -> ThreadPath:
        """(tree, child, grandchild, ...), each counted from 0."""
        return self._task.path

    @property
    def status(self) -> ChildStatus:
        """How far it has come."""
        return self._task.status

    @property
    def answer(self) -> Answer | None:
        """How it ended; None until then. Of one that failed or was cancelled it has no message."""
        return self._task.answer

    @property
    def error(self) -> Exception | None:
        """What it failed of; None for one that did not, or has not ended."""
        return self._task.error

    @property
    def is_joined(self) -> bool:
        """Whether a join has taken its answer; another one would be refused."""
        return self._task.is_joined

    @property
    def prompt(self) -> tuple[int, ...]:
        """Token ids of the message it was given."""
        return self._task.prompt

    @property
    def usage(self) -> Usage:
        """Of the child and everything below it."""
        return self._task.context.account.usage()

    def cancel(self) -> None:
        """Stops the child and everything below it, soon; its answer then has nothing in it. Does nothing to one that
        has ended."""
        self._task.lifetime.cancel()


def task_of(child: Child) -> ChildTask:
    """What a handle is of."""
    return child._task
