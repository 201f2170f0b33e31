"""Joining: waiting for children and taking over what they return."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Self

import anyio
import anyio.to_thread

from policies.conversion import shown
from runtime.errors import EngineFailed, ThreadStateError
from runtime.link.commands import ThreadPath
from runtime.link.events import Joined
from runtime.protocol import BoundProtocol
from runtime.threads.arrivals import Arrivals
from runtime.threads.child import Child, ChildTask, task_of
from runtime.threads.context import Context
from runtime.threads.merged_join import check_forked, fill_all, merge_contexts
from runtime.threads.results import Answer, has_returned

Asked = tuple[tuple[int, ...], ChildTask | None]
"""One child that was asked for: its prompt, and the child, or None where it was refused."""


class Children:
    """The children of one thread that nobody has joined yet."""

    __slots__ = ("_context", "_started", "_unjoined")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._started = 0
        self._unjoined: dict[ChildTask, None] = {}
        """In spawn order; a dictionary, because an empty one is small."""

    def __iter__(self) -> Iterator[ChildTask]:
        """Unjoined children in spawn order."""
        return iter(list(self._unjoined))

    def __len__(self) -> int:
        return len(self._unjoined)

    def new_path(self, *, of_tool: bool = False) -> ThreadPath:
        """Of the next child; a thread that calls tools alone is no parent."""
        self._started += 1
        self._context.has_children |= not of_tool
        return (*self._context.path, self._started - 1)

    def add(self, child: ChildTask) -> None:
        self._unjoined[child] = None

    def named(self, children: Iterable[Child] | None) -> list[ChildTask]:
        """Those that a caller names by their handles, or all that are not joined.

        Raises `ValueError` for anything but different children of this thread, and `ThreadStateError` for one that was
        joined.
        """
        if children is None:
            return list(self)
        try:
            if isinstance(children, str):
                raise TypeError
            chosen = list(children)
        except TypeError as cause:
            raise ValueError(f"children is {shown(children)}; give a list of children, or None for all.") from cause
        for child in chosen:
            if not isinstance(child, Child):
                raise ValueError(f"children has {shown(child)}; give what spawn() and fork() return.")
        if len(set(chosen)) < len(chosen):
            raise ValueError("The same child is given twice.")
        tasks = [task_of(child) for child in chosen]
        for task in tasks:
            if task.is_joined:
                raise ThreadStateError(f"Child {task.path} was joined already; keep the answer of the first join.")
            if task not in self._unjoined:
                raise ValueError(
                    f"Thread {task.path} is not a child of thread {self._context.path}; join it on its parent."
                )
        return tasks

    async def join_all(self, children: Sequence[ChildTask], append: bool) -> list[Answer]:
        """Waits for all, then appends what they return, in spawn order. Raises what they failed of, several as an
        `ExceptionGroup`; then nothing is appended. Cancelled, it has joined and appended nothing.
        """
        self._check(append)
        await self.collect(children)
        await self.take_over(children, append=_in_spawn_order(children) if append and children else None)
        return [child.given() for child in children]

    async def merge_all(self, children: Sequence[ChildTask]) -> list[Answer]:
        """Waits for all, then takes over their keys and values, in spawn order. Raises what they failed of, and
        `ThreadStateError` for children that this thread as it is now has not forked. Cancelled, it has joined nothing.
        """
        context = self._context
        in_order = sorted(children, key=_path)
        check_forked(context, [child.context for child in children])
        await self._claim(children).wait(len(children))
        if any(child.error is not None for child in children):
            for child in children:
                self.finish(child)
            self.raise_failures(children)
        kept = [child for child in in_order if child.context.state == "ended"]
        await fill_all([child.context for child in kept if child.context.has_own])
        check_forked(context, [child.context for child in children])
        await merge_contexts(context, [child.context for child in kept])
        for child in children:
            self.finish(child)
        await self._record(children, [child for child in kept if child.context.has_own], merged=True)
        return [child.given() for child in children]

    async def collect(self, children: Sequence[ChildTask]) -> None:
        """Waits for all and marks them joined. Raises and is cancelled like `join_all`."""
        await self._claim(children).wait(len(children))
        for child in children:
            self.finish(child)
        self.raise_failures(children)

    async def first(
        self, children: Sequence[ChildTask], accept: Callable[[Answer], bool], append: bool
    ) -> Answer | None:
        """See `ReasoningThread.first`."""
        self._check(append)
        arrivals = self._claim(children)
        finished: list[ChildTask] = []
        winner = None
        while winner is None and len(finished) < len(children):
            child = await arrivals.next()
            finished.append(child)
            if child.error is None and accept(child.given()):
                winner = child
        losers = [child for child in children if not child.is_done]
        for child in losers:
            child.lifetime.cancel()
        await arrivals.wait(len(children) - len(finished))
        for child in children:
            self.finish(child)
        if winner is None:
            self.raise_failures(children)
        await self.take_over(
            children, append=[(winner.prompt, winner)] if winner and append else None, cancelled=losers
        )
        return None if winner is None else winner.given()

    def as_completed(self, children: Sequence[ChildTask]) -> AsCompleted:
        self._context.check_open()
        return AsCompleted(self, self._claim(children), len(children))

    async def take_over(
        self,
        children: Sequence[ChildTask],
        *,
        append: Sequence[Asked] | None,
        before: Sequence[int] = (),
        cancelled: Sequence[ChildTask] = (),
    ) -> None:
        """Appends `before` and what the children in `append` returned, as the protocol puts it, and records the join
        of `children`. None appends nothing, while a model's join without spawns gets what the protocol says to no
        messages. Returns when the trace has it all; cancelled meanwhile, it has joined and appended. Raises like
        `Context.extend`.
        """
        context, asked = self._context, append or ()
        delivered = [child for _, child in asked if child is not None and has_returned(child.given())]
        protocol = context.session.opened.protocol
        if not isinstance(protocol, BoundProtocol) or append is None:
            delivery = self._joined(asked)
        else:
            # A protocol says how threads' messages are put, and nothing of tools: their results follow, as they are.
            threads = [each for each in asked if each[1] is None or not each[1].is_tool]
            tools = [each for each in asked if each[1] is not None and each[1].is_tool]
            most = protocol.protocol.most_messages
            delivered = [child for child in delivered if not child.is_tool][:most] + [
                child for child in delivered if child.is_tool
            ]
            delivery = []
            if threads or not tools:
                messages = [() if child is None else child.given().message for _, child in threads]
                delivery = await _delivery(protocol, messages, [prompt for prompt, _ in threads])
            delivery += self._joined(tools)
        context.extend([*before, *delivery])
        await self._record(children, delivered, cancelled)

    async def take_results(self, calls: Sequence[ChildTask], tokens: Sequence[int]) -> None:
        """Appends what the results of a model's calls of tools are in its context, and records their join. Returns when
        the trace has it all. Raises like `Context.extend`."""
        self._context.extend(tokens)
        await self._record(calls, calls)

    async def _record(
        self,
        children: Iterable[ChildTask],
        delivered: Iterable[ChildTask],
        cancelled: Iterable[ChildTask] = (),
        *,
        merged: bool = False,
    ) -> None:
        session = self._context.session
        if session.is_recording:
            session.record(
                Joined(
                    time=0.0,
                    thread=self._context.path,
                    children=tuple(child.path for child in children),
                    delivered=tuple(child.path for child in delivered),
                    cancelled=tuple(child.path for child in cancelled),
                    merged=merged,
                )
            )
            await session.recorded()

    def _joined(self, asked: Sequence[Asked]) -> list[int]:
        """What children returned, one after the other. Raises `PromptError` for a tool's result that the tokenizer
        cannot write."""
        joined: list[int] = []
        for _, child in asked:
            if child is not None and child.is_tool and child.given().text:
                joined += self._context.session.encode_message(child.given().text, parse_special_tokens=False)
            elif child is not None:
                joined += child.given().message
        return joined

    def raise_failures(self, children: Iterable[ChildTask]) -> None:
        """Raises what children failed of: one error as it is, several as an `ExceptionGroup` in spawn order."""
        errors = [child.error for child in sorted(children, key=_path) if child.error is not None]
        if not errors:
            return
        # A dead device is one failure, however many children saw it.
        self._context.session.check()
        if len(errors) == 1:
            raise errors[0]
        raise ExceptionGroup(f"{len(errors)} children of thread {self._context.path} failed", errors)

    def failures(self, body: Exception | None) -> list[Exception]:
        """Errors of children that nobody joined or awaited, in spawn order; without what the parent's own covers."""
        errors = [child.error for child in self if child.error is not None and not child.is_error_raised]
        if isinstance(body, EngineFailed):
            errors = [error for error in errors if not isinstance(error, EngineFailed)]
        return errors

    def finish(self, child: ChildTask) -> None:
        """The child is joined."""
        child.is_joined = True
        child.context.close()
        child.arrivals = None
        self._unjoined.pop(child, None)

    def _check(self, append: bool) -> None:
        if append:
            self._context.check_idle("join")
        else:
            self._context.check_open()

    def _claim(self, children: Sequence[ChildTask]) -> Arrivals[ChildTask]:
        self._context.account.has_begun()
        for child in children:
            if child.arrivals is not None and child.arrivals.is_waiting:
                raise ThreadStateError(f"Child {child.path} is being joined by another coroutine; join it once.")
        arrivals: Arrivals[ChildTask] = Arrivals(self._context.session.inbox.new_wakeup)
        for child in children:
            if child.arrivals is not None:
                child.arrivals.is_superseded = True
            child.arrivals = arrivals
            if child.is_done:
                arrivals.arrive(child)
        return arrivals


class AsCompleted:
    """Async iterator over the answers of children as they finish. Appends nothing.

    A child that failed raises its error in its turn; the iteration may go on after it. Children that were not reached
    stay unjoined; where one of them is joined otherwise meanwhile, the iteration ends with `ThreadStateError`.
    """

    def __init__(self, children: Children, arrivals: Arrivals[ChildTask], count: int) -> None:
        self._children = children
        self._arrivals = arrivals
        self._left = count

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Answer:
        if not self._left:
            raise StopAsyncIteration
        if self._arrivals.is_superseded:
            raise ThreadStateError(
                "Children of this as_completed were given to another join before they were reached; give each to one."
            )
        child = await self._arrivals.next()
        self._left -= 1
        self._children.finish(child)
        self._children.raise_failures([child])
        await self._children.take_over([child], append=())
        return child.given()


async def _delivery(
    protocol: BoundProtocol, messages: Sequence[tuple[int, ...]], prompts: Sequence[tuple[int, ...]]
) -> list[int]:
    """What a join appends, as the protocol puts it; a text is searched and encoded beside the event loop."""
    if protocol.on_ids:
        return protocol.delivery(messages, prompts)
    # The children are joined already, so that what they returned has to follow.
    with anyio.CancelScope(shield=True):
        made = await anyio.to_thread.run_sync(protocol.delivery, messages, prompts)
    return made


def _path(child: ChildTask) -> ThreadPath:
    return child.path


def _in_spawn_order(children: Iterable[ChildTask]) -> list[Asked]:
    return [(child.prompt, child) for child in sorted(children, key=_path)]
