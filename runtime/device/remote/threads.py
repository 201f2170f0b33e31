"""Threads of a device whose model a server runs: what commands do to them.

OpenThread, Extend, Interrupt, CloseThread: the context that is kept here
Generate: a task: place -> request -> chunks -> `Speaking`, asked again where the stream breaks off
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any

from runtime.device.journal import Journal
from runtime.device.remote.asking import Asking
from runtime.device.remote.chunks import BrokenStream, Heard, Reader
from runtime.device.remote.connection import Connection
from runtime.device.remote.offer import Offer
from runtime.device.remote.places import Places
from runtime.device.remote.retrying import Patience, persistently
from runtime.device.remote.settings import RemoteSettings
from runtime.device.remote.speaking import RemoteThread, Speaking
from runtime.device.remote.vocabulary import Vocabulary
from runtime.errors import (
    BraidError,
    ConstraintError,
    PolicyError,
    PromptError,
    RemoteError,
    ThreadStateError,
    busy,
    context_full,
    device_error,
    empty_context,
)
from runtime.link import events
from runtime.link.commands import (
    Answered,
    CloseThread,
    Extend,
    Failed,
    FinishReason,
    Generate,
    Interrupt,
    Merge,
    OpenThread,
    ThreadPath,
)

_REASONS: dict[str, FinishReason] = {"length": "length", "context": "context", "iterations": "iterations"}

DRAINED = 1.0
"""Seconds that a stream may take to end after its last token, for its connection to serve again."""


class RemoteThreads:
    """By path; on the device's event loop."""

    def __init__(
        self,
        offer: Offer,
        settings: RemoteSettings,
        vocabulary: Vocabulary,
        connection: Connection,
        journal: Journal,
        *,
        max_context: int | None,
        vocab_size: int | None,
        changed: Callable[[], None],
    ) -> None:
        """`changed` is called when reports are due that no command gave."""
        self._offer = offer
        self._settings = settings
        self._vocabulary = vocabulary
        self._asking = Asking(offer, vocabulary, max_context)
        self._connection = connection
        self._journal = journal
        self._max_context = max_context
        self._vocab_size = vocab_size
        self._changed = changed
        self._places = Places(settings.max_requests)
        self._by_path: dict[ThreadPath, RemoteThread] = {}
        self._tasks: dict[asyncio.Task[None], Speaking] = {}

    def __len__(self) -> int:
        return len(self._by_path)

    @property
    def paths(self) -> list[ThreadPath]:
        return list(self._by_path)

    @property
    def waiting(self) -> int:
        """Generates that have no place yet."""
        return self._places.waiting

    @property
    def speaking(self) -> int:
        """Generates that are not over."""
        return sum(not speaking.is_over for speaking in self._tasks.values())

    def open(self, command: OpenThread) -> None:
        if command.thread in self._by_path:
            self._refuse(command.thread, ThreadStateError(f"Thread {command.thread} is open already."))
            return
        parent = None if command.inherits is None else self._by_path.get(command.inherits)
        if command.inherits is not None and (parent is None or parent.speaking is not None):
            state = "not open" if parent is None else "generating"
            error = ThreadStateError(
                f"Thread {command.thread} cannot inherit from {command.inherits}, which is {state}."
            )
            self._refuse(command.thread, error)
            return
        thread = self._by_path[command.thread] = RemoteThread(command.thread, command.depth, command.priority)
        if parent is not None:
            # What it inherits is not counted again.
            thread.tokens, thread.computed = parent.tokens[:], len(parent.tokens)
        self._journal.record(
            events.ThreadOpened,
            thread=command.thread,
            inherits=command.inherits,
            seed=command.seed,
            depth=command.depth,
        )

    def extend(self, command: Extend) -> None:
        thread = self._known(command.thread)
        if thread is None or not command.tokens:
            return
        if (error := self._refusal(thread, command.tokens, "append")) is not None:
            self._fail(thread, error)
            return
        self._journal.record(events.Received, thread=thread.path, position=len(thread.tokens), tokens=command.tokens)
        thread.tokens += command.tokens
        thread.received += len(command.tokens)

    def generate(self, request: Generate) -> None:
        """Begins a generate, in a task of its own."""
        thread = self._known(request.thread)
        if thread is None:
            return
        if thread.speaking is not None:
            self._fail(thread, busy(thread.path, "generate"))
            self._refuse(thread.path, busy(thread.path, "generate"))
            return
        thread.start = len(thread.tokens)
        error: BraidError | None = empty_context(thread.path) if not thread.tokens else None
        if error is None and request.constraint is not None:
            error = ConstraintError("What a server says cannot be constrained from here; ask it for a text to parse.")
        if error is None and request.scores:
            error = self._refusal(thread, request.scores, "score")
        try:
            self._offer.check_depth(request.depth or thread.depth)
        except PolicyError as refused:
            error = error or refused
        if error is not None:
            self._fail(thread, error)
            return
        thread.depth = request.depth or thread.depth
        speaking = thread.speaking = Speaking(thread, request, self._journal, self._max_context)
        self._journal.record(
            events.GenerateStarted,
            thread=thread.path,
            position=len(thread.tokens),
            max_tokens=request.max_tokens,
            sampling=request.sampling,
            depth=thread.depth,
            max_iterations=request.max_iterations,
            scores=request.scores,
            fills=request.fills,
            constraint=request.constraint,
        )
        if request.fills:
            speaking.finish("filled")
            return
        if not request.scores and (bound := speaking.bound()) is not None:
            speaking.finish(bound)
            return
        task = asyncio.get_running_loop().create_task(self._run(speaking))
        self._tasks[task] = speaking
        task.add_done_callback(self._tasks.pop)

    def merge(self, command: Merge) -> None:
        refusal = RemoteError(
            f"Thread {command.thread} cannot merge its children: their keys and values are the server's. Join with "
            f"merge=False."
        )
        self._journal.reports.append(Answered(command.number, refusal))

    def interrupt(self, command: Interrupt) -> None:
        """Ends a thread's generate, whose request is closed; of one that has ended, its tokens are cut."""
        thread = self._by_path.get(command.thread)
        if thread is None:
            return
        if thread.speaking is not None:
            self._cancel(thread.speaking)
            thread.speaking.interrupt(command.keep)
        else:
            thread.cut(min(len(thread.tokens), thread.start + command.keep))

    def close(self, command: CloseThread) -> None:
        thread = self._by_path.pop(command.thread, None)
        if thread is None:
            return
        if thread.speaking is not None:
            self._cancel(thread.speaking)
            thread.speaking.interrupt(2**31)
        self._journal.record(events.ThreadClosed, thread=command.thread)

    def fail_unforeseen(self, path: ThreadPath, cause: BaseException) -> None:
        """Ends a thread, open or not, for what the device could not do for it."""
        thread, error = self._by_path.get(path), device_error(path, cause)
        if thread is None:
            self._refuse(path, error)
        else:
            self._fail(thread, error)

    async def aclose(self) -> None:
        """Closes all requests, and waits until they are."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- a request --------------------------------------------------------------------------------------------------

    async def _run(self, speaking: Speaking) -> None:
        thread = speaking.thread
        try:
            async with self._places.place(thread.priority, thread.path):
                await (self._score(speaking) if speaking.request.scores else self._speak(speaking))
        except BraidError as error:
            self._end(speaking, error)
        except Exception as cause:
            self._end(speaking, device_error(thread.path, cause))

    def _end(self, speaking: Speaking, error: BraidError) -> None:
        if not speaking.is_over:
            speaking.fail(error)
            self._changed()

    async def _speak(self, speaking: Speaking) -> None:
        thread, request = speaking.thread, speaking.request

        def body() -> dict[str, Any]:
            return self._asking.completion(thread.tokens, request, thread.depth, thread.priority, said=speaking.said)

        with suppress(TimeoutError):
            async with (
                asyncio.timeout(None) as timeout,
                aclosing(self._heard(body, request.sampling.logprobs)) as stream,
            ):
                async for heard in stream:
                    if not speaking.is_over:
                        speaking.take(heard)
                        if heard.finish is not None:
                            timeout.reschedule(asyncio.get_running_loop().time() + DRAINED)
                            if not speaking.is_over:
                                speaking.finish(_reason_of(heard.finish))
                        self._changed()
                        if speaking.is_over and heard.finish is None:
                            # Ended here: the server is to say no more.
                            break

    async def _score(self, speaking: Speaking) -> None:
        thread, request = speaking.thread, speaking.request

        def body() -> dict[str, Any]:
            return self._asking.score(thread.tokens, request, thread.depth, thread.priority)

        async def whole() -> AsyncGenerator[Heard, None]:
            # An echo that breaks off is asked for as a whole again.
            heard = [each async for each in self._connection.completion(body(), reader)]
            if not speaking.is_over and not speaking.scored(heard):
                raise BrokenStream("the echo is not of what was to be scored")
            yield Heard()

        reader = self._reader(request.sampling.logprobs)
        async with aclosing(persistently(whole, Patience(self._settings, self._offer.address), asyncio.sleep)) as run:
            async for _ in run:
                self._changed()

    def _heard(self, body: Callable[[], dict[str, Any]], tops: int) -> AsyncGenerator[Heard, None]:
        reader = self._reader(tops)

        def ask() -> AsyncGenerator[Heard, None]:
            return self._connection.completion(body(), reader)

        return persistently(ask, Patience(self._settings, self._offer.address), asyncio.sleep)

    def _reader(self, tops: int) -> Reader:
        vocabulary = None if self._offer.token_ids else self._vocabulary
        return Reader(vocabulary, tops=tops, vocab_size=self._vocab_size)

    # ---- refusals ---------------------------------------------------------------------------------------------------

    def _cancel(self, speaking: Speaking) -> None:
        for task, one in self._tasks.items():
            if one is speaking:
                task.cancel()

    def _known(self, path: ThreadPath) -> RemoteThread | None:
        thread = self._by_path.get(path)
        if thread is None:
            self._refuse(path, ThreadStateError(f"Thread {path} is not open."))
        return thread

    def _refusal(self, thread: RemoteThread, tokens: tuple[int, ...], wish: str) -> BraidError | None:
        if thread.speaking is not None:
            return busy(thread.path, wish)
        if self._vocab_size is not None and not 0 <= min(tokens) <= max(tokens) < self._vocab_size:
            return PromptError(f"Thread {thread.path} received a token that is none of 0 to {self._vocab_size - 1}.")
        length, most = len(thread.tokens) + len(tokens), self._max_context
        return context_full(thread.path, length, most) if most is not None and length > most else None

    def _refuse(self, path: ThreadPath, error: BraidError) -> None:
        self._journal.reports.append(Failed(path, error))

    def _fail(self, thread: RemoteThread, error: BraidError) -> None:
        if thread.speaking is not None:
            self._cancel(thread.speaking)
            thread.speaking.fail(error)
        else:
            self._refuse(thread.path, error)
            self._journal.record(events.ThreadFailed, thread=thread.path, error=f"{type(error).__name__}: {error}")


def _reason_of(finish: str | None) -> FinishReason:
    """Ours, of a server's."""
    return _REASONS.get(finish or "", "iterations" if finish == "limit" else "stop")
