"""A reasoning thread: a context that grows by appending, generating and joining, and the children it has."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import msgspec

from policies import DepthPolicy, Limits
from runtime.errors import LimitExceeded, PromptError, ThreadStateError, described
from runtime.link.commands import ThreadPath
from runtime.link.events import RunStarted, Spawned, ThreadEnded
from runtime.results import Answer, Generation, Outcome, Usage
from runtime.sampling import Sampling
from runtime.threads.accounts import NO_LIMITS, Account
from runtime.threads.arguments import FirstArguments, GenerateArguments, JoinArguments, ThreadArguments
from runtime.threads.child import Child, ChildTask
from runtime.threads.context import Context, GenerateOptions
from runtime.threads.driver import drive
from runtime.threads.joining import AsCompleted, Children
from runtime.threads.lifetime import Lifetime
from runtime.threads.session import ThreadSettings
from runtime.threads.stream import Stream

Program = Callable[["ReasoningThread"], Awaitable[str | Sequence[int] | None]]
"""What a program runs in a child: it gets the child's thread and returns the child's message, or None."""


class ReasoningThread:
    """One line of thought. Use it inside `async with`; leaving cancels children that were not joined, waits until
    they are gone, and frees the thread's memory.

    Errors of children that nobody joined are raised from the `async with` as an `ExceptionGroup`. A thread's methods
    belong to the task that entered it.
    """

    __slots__ = ("_prompt", "children", "context", "lifetime", "outcome")

    def __init__(self, context: Context, prompt: tuple[int, ...] | None = None, above: Lifetime | None = None) -> None:
        """`above` is the parent's lifetime; None for a root."""
        self.context = context
        self.lifetime = Lifetime(above)
        self.children = Children(context)
        """Those that nobody has joined yet, in spawn order."""
        self.outcome: Outcome | None = None
        """What the thread returned, once its work is done; set by whoever runs it."""
        self._prompt = prompt

    def __repr__(self) -> str:
        return f"<ReasoningThread {self.path} {self.context.state}, {len(self.context.tokens)} tokens>"

    @property
    def path(self) -> ThreadPath:
        """(tree, child, grandchild, ...), each counted from 0."""
        return self.context.path

    @property
    def tokens(self) -> tuple[int, ...]:
        """Token ids of the whole context."""
        return tuple(self.context.tokens)

    @property
    def text(self) -> str:
        """Text of the whole context; empty without a tokenizer."""
        return self.context.session.decode(self.context.tokens)

    @property
    def usage(self) -> Usage:
        """Of the thread and everything below it."""
        return self.context.account.usage()

    @property
    def own_usage(self) -> Usage:
        """Of the thread alone."""
        return self.context.account.own_usage()

    def append(self, text: str | Sequence[int]) -> None:
        """Appends text or token ids to the context; they are computed when the thread next generates.

        The text goes on where the context ends: no space is put between them. Where the context is empty, it begins
        as the tokenizer begins texts. Raises `PromptError` for what cannot be encoded or does not fit,
        `ThreadStateError` while generating.
        """
        self.context.extend(self.context.session.encode(text, self.context.tokens))

    async def generate(
        self,
        max_tokens: int | None = None,
        *,
        stop: Sequence[str | int] = (),
        sampling: Sampling | None = None,
        depth: DepthPolicy | None = None,
        nowait: bool = False,
    ) -> Generation:
        """Samples tokens until a stop, a bound or the end of the context, and appends them.

        `stop` lists strings and token ids that count beside the checkpoint's stop tokens. Strings are looked for in the
        text that the context gains, over the borders of tokens. `depth` and `sampling` hold for this call. Waits for a
        place in the batching queue, or raises `QueueFull` with `nowait`.

        Limits bound the call to what is left (reason "length" or "iterations", and `limit` says which); where nothing
        is left at the start, it raises `LimitExceeded`. Cancelled, the context is exactly as before the call.
        """
        given = {"max_tokens": max_tokens, "stop": stop, "sampling": sampling, "depth": depth, "nowait": nowait}
        return await self.context.generate(self._options(given, stream=False))

    def stream(
        self,
        max_tokens: int | None = None,
        *,
        stop: Sequence[str | int] = (),
        sampling: Sampling | None = None,
        depth: DepthPolicy | None = None,
        nowait: bool = False,
    ) -> Stream:
        """`generate` as an async iterator of chunks, whose texts joined are the generation's.

        Text that may still change or become a stop string is held back. Left early, the context keeps the tokens that
        were delivered.
        """
        given = {"max_tokens": max_tokens, "stop": stop, "sampling": sampling, "depth": depth, "nowait": nowait}
        return Stream(self.context, self._options(given, stream=True))

    def spawn(
        self,
        message: str | Sequence[int],
        *,
        program: Program | None = None,
        limits: Limits | None = None,
        depth: DepthPolicy | None = None,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        priority: int | None = None,
    ) -> Child:
        """Starts a child that sees only the message, as a task of this thread.

        `program` works in the child and returns its message; without it the model drives the child, under the protocol
        if there is one. What is not given is inherited. Raises `LimitExceeded` where the limits allow no more children.
        """
        session = self.context.session
        tokens = session.encode(message)
        if not tokens or (isinstance(message, str) and tokens == session.encode("")):
            raise PromptError("A child sees nothing but its message, and this one is empty. Give it one, or fork().")
        given = ThreadArguments(
            program=program, limits=limits, depth=depth, sampling=sampling, max_tokens=max_tokens, priority=priority
        )
        self._check_child()
        return Child(self.start_child(tokens, program=program, limits=given.limits, settings=self._settings(given)))

    def fork(
        self,
        message: str | Sequence[int] | None = None,
        *,
        program: Program | None = None,
        limits: Limits | None = None,
        depth: DepthPolicy | None = None,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        priority: int | None = None,
    ) -> Child:
        """Like `spawn`, but the child begins with this thread's context, sharing its memory, and then the message.

        Raises `ThreadStateError` while this thread is generating.
        """
        tokens = () if message is None else self.context.session.encode(message, self.context.tokens)
        given = ThreadArguments(
            program=program, limits=limits, depth=depth, sampling=sampling, max_tokens=max_tokens, priority=priority
        )
        self.context.check_idle("fork")
        self._check_child()
        settings = self._settings(given)
        return Child(self.start_child(tokens, program=program, limits=given.limits, settings=settings, fork=True))

    async def join(self, children: Iterable[Child] | None = None, *, append: bool = True) -> list[Answer]:
        """Waits for all children (all that are not joined, if none are named) and appends what they return.

        Answers are in the order of `children`, messages are appended in spawn order. What children failed of is raised,
        several errors as an `ExceptionGroup`; then nothing is appended. Cancelled, nothing is joined and nothing
        appended; the children may be joined again.
        """
        given = JoinArguments(append=append)
        return await self.children.join_all(self.children.named(children), given.append)

    async def first(
        self,
        children: Iterable[Child] | None = None,
        *,
        accept: Callable[[Answer], bool] | None = None,
        append: bool = True,
    ) -> Answer | None:
        """The first answer that `accept` takes, its message appended; the others are cancelled, and gone when this
        returns.

        `accept` is offered the answers of `children` (all that are not joined, if none are named) one by one, as the
        children end; those that have ended already come first, in the order given. Without it, the first answer with a
        message is taken. Children that failed are not offered.

        When none is accepted, what children failed of is raised, several errors as an `ExceptionGroup`; where none
        failed, this is None, and all are joined. What `accept` raises is raised, and nothing is joined. Cancelled,
        nothing is joined and nothing appended, but for children that were already being cancelled because one was
        accepted: joined again, they have nothing to answer.
        """
        given = FirstArguments(accept=accept, append=append)
        return await self.children.first(self.children.named(children), given.accept or _has_message, given.append)

    def as_completed(self, children: Iterable[Child] | None = None) -> AsCompleted:
        """Answers as children finish: `async for answer in thread.as_completed(children)`. Appends nothing."""
        return self.children.as_completed(self.children.named(children))

    def cancel(self) -> None:
        """Stops the thread and everything below it, soon, as a cancel scope around its `async with` would."""
        self.lifetime.cancel()

    async def __aenter__(self) -> Self:
        if self.lifetime.is_entered or self.context.state == "closed":
            raise ThreadStateError(f"Thread {self.path} was entered before. Open another one.")
        self.context.session.check()
        await self.lifetime.enter(self.context.account.limits.seconds)
        if self._prompt is not None:
            try:
                self._open_root(self._prompt)
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
        prompt: tuple[int, ...],
        *,
        settings: ThreadSettings,
        program: Program | None = None,
        limits: Limits | None = None,
        fork: bool = False,
        by_model: bool = False,
        reason: str = "",
    ) -> ChildTask:
        """Opens a child, appends its prompt and starts its task. The caller has checked that the limits allow it."""
        context = self.context
        context.check_open()
        path = self.children.new_path()
        account = Account(path, limits or NO_LIMITS, context.account)
        thread = ReasoningThread(Context(path, context.session, account, settings), above=self.lifetime)
        child = ChildTask(thread.context, thread.lifetime, len(prompt))
        thread.context.open(inherits=context if fork else None)
        self.record_spawn(path, prompt, by_model=by_model, fork=fork, reason=reason)
        self.children.add(child)
        try:
            child.receive_prompt(prompt)
        except PromptError:
            self.children.finish(child)
            thread.context.close()
            raise
        self.lifetime.start(
            thread.lifetime, partial(child.main, partial(thread._work, program)), name=f"reasoning thread {path}"
        )
        return child

    async def _work(self, program: Program | None) -> Outcome | None:
        """What a child's task does: a program's work, or what the model says. None where it was cancelled."""
        try:
            async with self:
                self.outcome = await (drive(self) if program is None else self._returned_by(program))
        except LimitExceeded:
            # A model cannot help running out; a program can, and is told.
            if program is not None:
                raise
            return Outcome((), "", "limit")
        return self.outcome

    async def _returned_by(self, program: Program) -> Outcome:
        message = await program(self)
        session = self.context.session
        tokens = () if message is None else session.encode_message(message)
        if message is None or not tokens:
            return Outcome((), "", "nothing")
        return Outcome(tokens, message if isinstance(message, str) else session.decode(tokens), "returned")

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

    def _open_root(self, prompt: tuple[int, ...]) -> None:
        session = self.context.session
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
                )
            )
        self.context.close()

    def _options(self, arguments: dict[str, Any], stream: bool) -> GenerateOptions:
        given = GenerateArguments(**arguments)
        session = self.context.session
        return GenerateOptions(
            max_tokens=given.max_tokens,
            stop_tokens=given.stop_tokens | session.opened.stop_tokens,
            stop_strings=given.stop_strings,
            sampling=given.sampling,
            depth=given.depth,
            nowait=given.nowait,
            stream=stream,
        )

    def _settings(self, given: ThreadArguments) -> ThreadSettings:
        """The thread's own, but for what is given."""
        names = ("depth", "sampling", "max_tokens", "priority")
        changes = {name: value for name in names if (value := getattr(given, name)) is not None}
        return msgspec.structs.replace(self.context.settings, **changes) if changes else self.context.settings

    def _check_child(self) -> None:
        self.context.check_open()
        refusal = self.context.account.refusal()
        if refusal:
            raise LimitExceeded(f"Thread {self.path} may have no more children: {refusal}. Raise its Limits.")


def _has_message(answer: Answer) -> bool:
    return bool(answer.message)
