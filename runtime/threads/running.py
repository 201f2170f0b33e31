"""A thread while it is open: its context, its lifetime, the children it has, and how it ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Self

from policies import Limits
from runtime.errors import LimitExceeded, PromptError, ThreadStateError, described
from runtime.link.commands import ThreadPath
from runtime.link.events import RunStarted, Spawned, ThreadEnded
from runtime.threads.accounts import NO_LIMITS, Account
from runtime.threads.child import ChildTask
from runtime.threads.context import Context
from runtime.threads.joining import Children
from runtime.threads.lifetime import Lifetime
from runtime.threads.opening import Opening, render_opening
from runtime.threads.results import Outcome
from runtime.threads.session import ThreadSettings
from runtime.threads.tool import Tool
from runtime.threads.tool_calls import ToolRun


class RunningThread:
    """What `ReasoningThread` is a face of, and what a model drives. Entered once, in the task that leaves it.

    Leaving cancels children that were not joined, waits until they are gone, and lets the device forget the thread.
    """

    __slots__ = ("_prompt", "children", "context", "lifetime", "outcome", "receive")

    def __init__(
        self, context: Context, prompt: tuple[int, ...] | Opening | None = None, above: Lifetime | None = None
    ) -> None:
        """`above` is the parent's lifetime; None for a root, which has a prompt."""
        self.context = context
        self.lifetime = Lifetime(above)
        self.children = Children(context)
        """Those that nobody has joined yet, in spawn order."""
        self.outcome: Outcome | None = None
        """What the thread returned, once its work is done."""
        self.receive: Callable[[], Awaitable[None]] | None = None
        """Appends what a child begins with, where that is still to be rendered."""
        self._prompt = prompt

    @property
    def path(self) -> ThreadPath:
        return self.context.path

    async def run(self, work: Callable[[RunningThread], Awaitable[Outcome]]) -> Outcome | None:
        """The thread from beginning to end: what `work` returned; None where it was cancelled."""
        async with self:
            if self.receive is not None:
                await self.receive()
            self.outcome = await work(self)
        return self.outcome

    async def __aenter__(self) -> Self:
        if self.lifetime.is_entered or self.context.state == "closed":
            raise ThreadStateError(f"Thread {self.path} was entered before. Open another one.")
        self.context.session.check()
        await self.lifetime.enter(self.context.account.limits.seconds)
        if self._prompt is not None:
            try:
                await self._open_root(self._prompt)
            except BaseException:
                self.context.close()
                await self.lifetime.leave(None)
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if not self.lifetime.is_entered:
            raise ThreadStateError(f"Thread {self.path} was not entered.")
        body = error if isinstance(error, Exception) else None
        is_swallowed, has_run_out, escaped = await self.lifetime.leave(error)
        if has_run_out:
            body = LimitExceeded(
                f"Thread {self.path} ran longer than its limit of {self.context.account.limits.seconds} s. Raise "
                f"Limits.seconds, or give it less to do."
            )
        self._close(body, is_cancelled=is_swallowed or escaped is not None)
        failures = self.children.failures(body)
        try:
            if len(self.path) == 1:
                # Of the others' ends the joins have waited.
                await self.context.session.recorded()
            if failures:
                errors = [body, *failures] if body is not None else failures
                raise ExceptionGroup(f"unjoined children of thread {self.path} failed", errors)
            if body is not None and body is not error:
                raise body from None
            if body is not None or (escaped is not None and escaped is error):
                return False
            if escaped is not None:
                raise escaped
            await self.context.account.settled()
            return is_swallowed
        finally:
            del body, escaped, failures, error

    def start_child(
        self,
        prompt: tuple[int, ...] | Opening,
        *,
        settings: ThreadSettings,
        main: Callable[[RunningThread], Awaitable[Outcome | None]],
        limits: Limits | None = None,
        fork: bool = False,
        by_model: bool = False,
        reason: str = "",
    ) -> ChildTask:
        """Opens a child, appends its prompt and starts its task, in which `main` runs it from beginning to end.
        Messages are appended in that task.

        The caller has checked that the limits allow it. Raises `ThreadStateError` where this thread is not open, and
        `PromptError` for a prompt that does not fit.
        """
        context = self.context
        context.check_open()
        path = self.children.new_path()
        account = Account(path, limits or NO_LIMITS, context.account)
        thread = RunningThread(Context(path, context.session, account, settings, context), above=self.lifetime)
        opening, tokens = (prompt, ()) if isinstance(prompt, Opening) else (None, prompt)
        child = ChildTask(thread.context, thread.lifetime, len(tokens))
        if opening is not None:
            thread.receive = partial(child.receive_messages, opening)
        thread.context.open(inherits=context if fork else None)
        self.record_spawn(path, tokens, by_model=by_model, fork=fork, reason=reason)
        self.children.add(child)
        try:
            child.receive_prompt(tokens)
        except PromptError:
            self.children.finish(child)
            thread.context.close()
            raise
        self.lifetime.start(
            thread.lifetime, partial(child.main, partial(main, thread)), child.abandon, name=f"reasoning thread {path}"
        )
        return child

    def start_tool(self, tool: Tool, arguments: str, *, by_model: bool = False) -> ChildTask:
        """Starts the task of a tool's call; `arguments` are JSON. What it gives is its answer's text and message.

        The caller has checked that the limits allow it. Raises `ThreadStateError` where this thread is not open.
        """
        context = self.context
        context.check_open()
        path = self.children.new_path(of_tool=True)
        called = Context(path, context.session, Account(path, NO_LIMITS, context.account), context.settings, context)
        lifetime = Lifetime(self.lifetime)
        child = ChildTask(called, lifetime, 0, is_tool=True)
        run = ToolRun(tool, arguments, called, lifetime)
        context.account.count_tool_call()
        self.record_spawn(path, (), by_model=by_model, fork=False, reason="")
        run.record_call()
        self.children.add(child)
        self.lifetime.start(
            lifetime, partial(child.main, run.run), child.abandon, name=f"tool {tool.name} of thread {context.path}"
        )
        return child

    def record_spawn(
        self, child: ThreadPath | None, prompt: tuple[int, ...], *, by_model: bool, fork: bool, reason: str
    ) -> None:
        """Writes a spawn, or its refusal, into the trace."""
        if self.context.session.is_recording:
            self.context.session.record(
                Spawned(
                    time=0.0,
                    thread=self.path,
                    child=child,
                    by_model=by_model,
                    fork=fork,
                    tokens=prompt,
                    reason=reason,
                )
            )

    async def _open_root(self, prompt: tuple[int, ...] | Opening) -> None:
        session = self.context.session
        if isinstance(prompt, Opening):
            prompt = await render_opening(self.context, prompt)
        self.context.open()
        if session.is_recording:
            session.record(RunStarted(time=0.0, thread=self.path, prompt=session.decode(prompt)))
        self.context.extend(prompt)

    def _close(self, error: Exception | None, is_cancelled: bool) -> None:
        for child in self.children:
            # A child whose task never came to run has opened its thread all the same.
            child.context.close()
        session = self.context.session
        if session.is_recording and self.context.state == "open":
            outcome = self.outcome or Outcome((), "", "nothing")
            kind = "returned" if outcome.message else "nothing"
            if error is not None:
                kind = "nothing" if isinstance(error, LimitExceeded) else "failed"
            elif is_cancelled:
                kind = "cancelled"
            if kind != "returned":
                outcome = Outcome((), "", "nothing")
            session.record(
                ThreadEnded(
                    time=0.0,
                    thread=self.path,
                    outcome=kind,
                    message=outcome.tokens,
                    text=outcome.text,
                    error="" if error is None else described(error),
                    work=self.context.account.own.copy(),
                    reasons=tuple(self.context.account.reasons),
                )
            )
        # A limit ends a thread between its generates; what it has counts for who merges it.
        is_whole = not is_cancelled and (error is None or isinstance(error, LimitExceeded))
        self.context.close(keeps=is_whole)
