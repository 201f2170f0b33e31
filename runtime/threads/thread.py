"""A reasoning thread: a context that grows by appending, generating and joining, and the children it has."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, Unpack, overload

import msgspec

from policies import DepthPolicy, Limits
from policies.conversion import converted, shown
from runtime.chat import Message
from runtime.errors import LimitExceeded, PromptError
from runtime.link.commands import ThreadPath
from runtime.link.sampling import Sampling
from runtime.protocol.constraints import ConstraintOptions
from runtime.threads.arguments import (
    FirstArguments,
    JoinArguments,
    ScoreArguments,
    ThreadArguments,
)
from runtime.threads.board import Tree
from runtime.threads.child import Child
from runtime.threads.driven_mail import prepare_mailbox
from runtime.threads.driver import drive_child
from runtime.threads.generate_options import GenerateOptions, generate_options
from runtime.threads.joining import AsCompleted
from runtime.threads.mail import Messages, content_of, post, receive, send
from runtime.threads.mailbox import ThreadMessage
from runtime.threads.opening import Opening, Received, append_messages, received
from runtime.threads.results import Answer, Generation, Outcome, Score, Usage, has_returned
from runtime.threads.running import RunningThread
from runtime.threads.session import ThreadSettings
from runtime.threads.stream import Stream
from runtime.threads.tool import arguments_text, recorded_tool

Program = Callable[["ReasoningThread"], Awaitable[str | Sequence[int] | None]]
"""What a program runs in a child: it gets the child's thread and returns the child's message, or None."""


class ReasoningThread:
    """One line of thought. Use it inside `async with`; leaving cancels children that were not joined, waits until
    they are gone, and frees the thread's pages.

    Errors of children that nobody joined are raised from the `async with` as an `ExceptionGroup`. A thread's methods
    belong to the task that entered it.
    """

    __slots__ = ("_context", "_running")

    def __init__(self, running: RunningThread) -> None:
        """Made by `Engine.thread`, and for programs that `spawn` and `fork` are given."""
        self._running = running
        self._context = running.context

    def __repr__(self) -> str:
        return f"<ReasoningThread {self.path} {self._context.state}, {len(self._context.tokens)} tokens>"

    @property
    def path(self) -> ThreadPath:
        """(tree, child, grandchild, ...), each counted from 0."""
        return self._context.path

    @property
    def tokens(self) -> tuple[int, ...]:
        """Token ids of the whole context."""
        return tuple(self._context.tokens)

    @property
    def text(self) -> str:
        """Text of the whole context; empty without a tokenizer."""
        return self._context.session.decode(self._context.tokens)

    @property
    def children(self) -> tuple[Child, ...]:
        """Those that nobody has joined yet, in spawn order."""
        return tuple(Child(task) for task in self._running.children)

    @property
    def usage(self) -> Usage:
        """Of the thread and everything below it."""
        return self._context.account.usage()

    @property
    def own_usage(self) -> Usage:
        """Of the thread alone."""
        return self._context.account.own_usage()

    @overload
    def append(self, text: str | Sequence[int], *, parse_special_tokens: bool | None = None) -> None: ...
    @overload
    def append(
        self, text: Message | Sequence[Message], *, parse_special_tokens: bool | None = None
    ) -> Coroutine[Any, Any, None]: ...
    def append(self, text: Received, *, parse_special_tokens: bool | None = None) -> Coroutine[Any, Any, None] | None:
        """Appends text, token ids or, awaited, messages to the context; computed when the thread next generates.

        A text goes on where the context ends: no space is put between them. Where the context is empty, it begins
        as the tokenizer begins texts. Messages go on as the chat template does, after what the thread has said, and
        with what the assistant begins with where it speaks next; cancelled meanwhile, none is appended. Special tokens
        that a text spells out are parsed, those in messages are not, unless `parse_special_tokens` says otherwise.
        Raises `PromptError` for what cannot be encoded or does not fit, or a template that changes what the context
        has; `ThreadStateError` while generating.
        """
        given = received(self._context, text, parse_special_tokens, self._context.tokens)
        if isinstance(given, Opening):
            return append_messages(self._context, given)
        self._context.extend(given)
        return None

    async def generate(
        self,
        max_tokens: int | None = None,
        *,
        stop: Sequence[str | int] = (),
        sampling: Sampling | None = None,
        depth: DepthPolicy | None = None,
        nowait: bool = False,
        **constraint: Unpack[ConstraintOptions],
    ) -> Generation:
        """Samples tokens until a stop, a bound or the end of the context, and appends them.

        `stop` lists strings and token ids that count beside the checkpoint's stop tokens. Strings are looked for in the
        text that the context gains, over the borders of tokens. `depth` and `sampling` hold for this call. Waits for a
        place in the batching queue, or raises `QueueFull` with `nowait`.

        Limits bound the call to what is left (reason "length" or "iterations", and `limit` says which); where nothing
        is left at the start, it raises `LimitExceeded`. Cancelled, the context is exactly as before the call.

        `json_schema`, `regex`, `choices` or `grammar` say what the text must be: no other token is sampled, and where
        the reason is "stop", it is that. See `ConstraintOptions`; raises `ConstraintError` for what cannot be followed.
        """
        given = {"max_tokens": max_tokens, "stop": stop, "sampling": sampling, "depth": depth, "nowait": nowait}
        return await self._context.generate(generate_options(self._context.session, given, constraint, stream=False))

    def stream(
        self,
        max_tokens: int | None = None,
        *,
        stop: Sequence[str | int] = (),
        sampling: Sampling | None = None,
        depth: DepthPolicy | None = None,
        nowait: bool = False,
        **constraint: Unpack[ConstraintOptions],
    ) -> Stream:
        """`generate` as an async iterator of chunks, whose texts joined are the generation's.

        Text that may still change or become a stop string is held back. Left early, the context keeps the tokens that
        were delivered.
        """
        given = {"max_tokens": max_tokens, "stop": stop, "sampling": sampling, "depth": depth, "nowait": nowait}
        return Stream(self._context, generate_options(self._context.session, given, constraint, stream=True))

    async def score(
        self,
        text: str | Sequence[int],
        *,
        top: int = 0,
        depth: DepthPolicy | None = None,
        nowait: bool = False,
        parse_special_tokens: bool | None = None,
    ) -> Score:
        """What text or token ids would be worth to the model after this context: the log-probability of each token.

        They are computed as if they were appended, chunk by chunk and batched with whatever else the device does, and
        the context is as before: append them to keep them. `top` is how many of the likeliest tokens are reported in
        the place of each; `depth` and `nowait` are as in `generate`, special tokens as in `append`. The context must
        have a token. Cancelled, nothing has changed.

        Raises `PromptError` for what is nothing, cannot be encoded or does not fit, `LimitExceeded` where the
        iterations that are left do not suffice, `ThreadStateError` while generating.
        """
        given = ScoreArguments(top=top, depth=depth, nowait=nowait, parse_special_tokens=parse_special_tokens)
        context = self._context
        parses = given.parse_special_tokens is not False
        tokens = context.session.encode(text, context.tokens, parse_special_tokens=parses)
        if not tokens:
            raise PromptError("There is nothing to score; give at least one token.")
        sampling = msgspec.structs.replace(Sampling.plain(1.0), logprobs=given.top)
        return await context.score(
            GenerateOptions(scores=tokens, sampling=sampling, depth=given.depth, nowait=given.nowait)
        )

    def spawn(
        self,
        message: Received,
        *,
        program: Program | None = None,
        limits: Limits | None = None,
        depth: DepthPolicy | None = None,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        priority: int | None = None,
        parse_special_tokens: bool | None = None,
    ) -> Child:
        """Starts a child that sees only the message, as a task of this thread.

        `program` works in the child and returns its message; without it the model drives the child, under the protocol
        if there is one. Chat messages are rendered in its task, which fails of what is wrong with them. What is not
        given is inherited. Raises `LimitExceeded` where the limits allow no more children.
        """
        begins = received(self._context, message, parse_special_tokens)
        if not begins or (isinstance(message, str) and begins == self._context.session.encode("")):
            raise PromptError("A child sees nothing but its message, and this one is empty. Give it one, or fork().")
        given = ThreadArguments(
            program=program, limits=limits, depth=depth, sampling=sampling, max_tokens=max_tokens, priority=priority
        )
        return self._start(begins, given)

    def fork(
        self,
        message: Received | None = None,
        *,
        program: Program | None = None,
        limits: Limits | None = None,
        depth: DepthPolicy | None = None,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        priority: int | None = None,
        parse_special_tokens: bool | None = None,
    ) -> Child:
        """Like `spawn`, but the child begins with this thread's context, sharing its pages, and then the message.

        Raises `ThreadStateError` while this thread is generating.
        """
        begins = () if message is None else received(self._context, message, parse_special_tokens, self.tokens)
        given = ThreadArguments(
            program=program, limits=limits, depth=depth, sampling=sampling, max_tokens=max_tokens, priority=priority
        )
        self._context.check_idle("fork")
        return self._start(begins, given, fork=True)

    def call(self, name: str, /, **arguments: object) -> Child:
        """Starts a call of a tool, as a task of this thread; others may run beside it.

        It is a child: `await` it for its answer, whose `text` is the result, or `join` it to append that, with special
        tokens that it spells out as text; `cancel` it, or wait for the `first` of several. It has no context and counts
        as no thread. Raises `ValueError` for a tool that there is not and arguments that are not JSON's or do not fit,
        and `LimitExceeded` where the limits allow no more calls.
        """
        self._context.check_open()
        tool = self._context.settings.tools.get(name)
        text = arguments_text(name, arguments)
        if self._context.session.opened.answers_tools:
            # Nothing is run, so that nobody need have added it.
            tool = tool or recorded_tool(name)
        elif tool is None:
            raise ValueError(f"There is no tool {shown(name)}; {self._context.settings.tools.listed}.")
        else:
            tool.check_call(text)
        refusal = self._context.account.tool_refusal()
        if refusal:
            raise LimitExceeded(f"Thread {self.path} may call no more tools: {refusal}. Raise Limits.tool_calls.")
        return Child(self._running.start_tool(tool, text))

    async def join(
        self, children: Iterable[Child] | None = None, *, append: bool = True, merge: bool = False
    ) -> list[Answer]:
        """Waits for all children (all that are not joined, if none are named) and appends what they return.

        Answers are in the order of `children`, messages are appended in spawn order. What children failed of is raised,
        several errors as an `ExceptionGroup`; then nothing is appended. Cancelled, nothing is joined and nothing
        appended; the children may be joined again.

        With `merge`, what forked children have beyond this context is appended as it is, keys and values included, in
        spawn order: nothing is computed again, and what they return is not appended. All were forked from this context
        as it is now. It sees all of them from now on, they see none of each other, and it goes on at the largest of
        their next positions; append something before it generates. A child that was cancelled leaves nothing, one that
        a limit ended leaves what it has. Raises `ThreadStateError` for children that were spawned, or forked from
        another context, and `CapacityError` where the engine's attention cannot.
        """
        given = JoinArguments(append=append, merge=merge)
        if given.merge:
            return await self._running.children.merge_all(self._running.children.named(children))
        return await self._running.children.join_all(self._running.children.named(children), given.append)

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
        nothing is joined and nothing appended; where one was accepted already, the others may have been cancelled.
        """
        given = FirstArguments(accept=accept, append=append)
        unjoined = self._running.children
        return await unjoined.first(unjoined.named(children), given.accept or has_returned, given.append)

    def as_completed(self, children: Iterable[Child] | None = None) -> AsCompleted:
        """Answers as children finish: `async for answer in thread.as_completed(children)`. Appends nothing."""
        return self._running.children.as_completed(self._running.children.named(children))

    async def send(self, to: Child | ReasoningThread | ThreadPath, message: str | Sequence[int]) -> None:
        """Puts a text, or token ids, into the mailbox of another thread of this tree, by its handle or path.

        A mailbox holds 64 messages; where it is full, this waits until there is room. Cancelled meanwhile, nothing is
        sent. Raises `ThreadStateError` for a thread that has ended, also meanwhile, and `ValueError` for one of another
        tree.
        """
        path = to.path if isinstance(to, Child | ReasoningThread) else converted(to, ThreadPath, "to")
        await send(self._context, path, *content_of(self._context, message))

    def messages(self, *, waits: bool = True) -> Messages:
        """What others have sent to this thread, oldest first: `async for message in thread.messages()`.

        Waits for more and ends when none can come, because no other thread of the tree is open; without `waits`, it
        ends when the mailbox is empty. Nothing is appended to the context. Left early or cancelled, the mailbox keeps
        what was not delivered. Raises `ThreadStateError` where two coroutines wait for one thread's messages.
        """
        return Messages(self._context, waits)

    def post(self, text: str) -> None:
        """Appends a text to the board of the tree, which others get at their next `receive`."""
        post(self._context, converted(text, str, "text"))

    async def receive(self) -> tuple[ThreadMessage, ...]:
        """Appends to the context what the mailbox has, and what others have posted on the board since the last time,
        as the protocol writes it, or as lines "sender: text". Returns it; waits for nothing.

        Raises `PromptError` for what cannot be encoded or does not fit, and `ThreadStateError` while generating.
        """
        self._context.check_idle("receive")
        return await receive(self._context)

    @property
    def tree(self) -> Tree:
        """The tree of this thread, which has its board."""
        return Tree(self._context.office.board)

    def cancel(self) -> None:
        """Stops the thread and everything below it, soon, as a cancel scope around its `async with` would."""
        self._running.lifetime.cancel()

    async def __aenter__(self) -> Self:
        await self._running.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        return await self._running.__aexit__(kind, error, traceback)

    def _settings(self, given: ThreadArguments) -> ThreadSettings:
        """The thread's own, but for what is given."""
        names = ("depth", "sampling", "max_tokens", "priority")
        changes = {name: value for name in names if (value := getattr(given, name)) is not None}
        if given.sampling is not None:
            changes["sampling"] = self._context.session.sampled_as(given.sampling)
        return msgspec.structs.replace(self._context.settings, **changes) if changes else self._context.settings

    def _start(self, prompt: tuple[int, ...] | Opening, given: ThreadArguments, fork: bool = False) -> Child:
        self._context.check_open()
        refusal = self._context.account.refusal()
        if refusal:
            raise LimitExceeded(f"Thread {self.path} may have no more children: {refusal}. Raise its Limits.")
        task = self._running.start_child(
            prompt, main=_main_of(given.program), limits=given.limits, settings=self._settings(given), fork=fork
        )
        if given.program is None:
            prepare_mailbox(task.context)
        return Child(task)


def _main_of(program: Program | None) -> Callable[[RunningThread], Awaitable[Outcome | None]]:
    """What runs a child: a program, or else its model."""
    return drive_child if program is None else partial(_run_program, program)


async def _run_program(program: Program, running: RunningThread) -> Outcome | None:
    return await running.run(partial(_returned_by, program))


async def _returned_by(program: Program, running: RunningThread) -> Outcome:
    message = await program(ReasoningThread(running))
    session = running.context.session
    tokens = () if message is None else session.encode_message(message)
    if message is None or not tokens:
        return Outcome((), "", "nothing")
    return Outcome(tokens, message if isinstance(message, str) else session.decode(tokens), "returned")
