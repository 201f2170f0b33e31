"""What all reasoning threads of one open engine share on the event loop."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from threading import get_ident
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from policies import DepthPolicy, SpawnPolicy
from runtime.console.logs import logger
from runtime.errors import EngineClosed, EngineFailed, PromptError, QueueFull
from runtime.link.commands import (
    CloseThread,
    Command,
    Failed,
    FlushRecording,
    Interrupt,
    Merge,
    OpenThread,
    Record,
    Request,
    Statistics,
    ThreadPath,
)
from runtime.link.constraints import Constraint, Matcher
from runtime.link.events import Event
from runtime.link.sampling import Sampling
from runtime.model.incremental import text_after
from runtime.model.tokenizer import Tokenizer
from runtime.protocol.constraints import Matchers
from runtime.threads.accounts import Account
from runtime.threads.arguments import token_ids
from runtime.threads.chat import Chat
from runtime.threads.inbox import Inbox, engine_failed
from runtime.threads.opened import Opened
from runtime.threads.tools import Tools

KEEP_ALL = 2**31 - 1
"""An `Interrupt.keep` that keeps whatever was emitted."""

_log = logger("runtime.engine")


class ThreadSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a thread works with, and its children where they are given nothing else."""

    depth: DepthPolicy
    spawn: SpawnPolicy
    sampling: Sampling
    priority: int
    max_tokens: int | None
    """Most tokens a model-driven thread samples over its life; the default bound of a `generate`."""
    tools: Tools
    """What may be called."""
    offers_tools: bool = False
    """Whether models are told of them, and call them, in the chat template's format."""
    chat_template_kwargs: Mapping[str, Any] = {}
    """What chat templates find beside messages."""


class Session:
    """Commands out, reports in, the bounded queue, and the engine's account. Used on the event loop."""

    def __init__(
        self,
        opened: Opened,
        *,
        seed: int,
        queue_size: int,
        records: bool,
        observer: Callable[[Event], None] | None,
    ) -> None:
        self.opened = opened
        self.chat = Chat(opened.chat_templates, opened.tokenizer, opened.stop_tokens)
        self.seed = seed
        self.is_closed = False
        self._matchers = Matchers(opened.tokenizer, opened.vocab_size, opened.stop_tokens)
        self.account = Account(())
        self.inbox = Inbox(self._interrupt_below)
        self.records = records
        """Whether events of trees go into a trace."""
        self.is_in_recording = False
        """Whether a block is entered, or being entered, that records what happens inside it."""
        self._device = opened.device
        self._observer = observer
        self._trees = opened.device.first_tree
        self._loop_thread = get_ident()
        self._queue_size = queue_size
        self._queue = anyio.Semaphore(queue_size, fast_acquire=True)

    def check(self) -> None:
        """Raises `EngineFailed` or `EngineClosed` if nothing can be asked of the device any more."""
        if self.inbox.failure is not None:
            raise engine_failed(self.inbox.failure)
        if self.is_closed:
            raise EngineClosed("The engine is closed. Use its threads inside its `async with` block.")

    def send(self, command: Command | Request) -> None:
        """Hands a command to the device; nothing where that is closed or gone."""
        if not self.is_closed and self.inbox.failure is None:
            self._device.send(command)

    async def request(self, make: Callable[[int], Request | Merge]) -> None:
        """Sends the request that `make` gives for its number and waits until the device has executed it.

        Raises what the device refuses it with, and `EngineFailed` or `EngineClosed`. What is sent cannot be taken back,
        so a cancelled caller waits for it all the same (but for cancellations of asyncio's own).
        """
        self.check()
        answer = self.inbox.expect_answer()
        self.send(make(answer.number))
        with anyio.CancelScope(shield=True):
            await answer.wait()

    def new_tree(self) -> ThreadPath:
        """The path of the next root."""
        self._trees += 1
        return (self._trees - 1,)

    def open_thread(self, path: ThreadPath, settings: ThreadSettings, inherits: ThreadPath | None = None) -> None:
        self.check()
        self.inbox.open.add(path)
        self.send(
            OpenThread(thread=path, seed=self.seed, depth=settings.depth, priority=settings.priority, inherits=inherits)
        )

    def close_thread(self, path: ThreadPath) -> None:
        """Once for every opened thread; more often does nothing."""
        if path in self.inbox.open:
            self.inbox.forget(path)
            self.send(CloseThread(path))

    @property
    def statistics(self) -> Statistics:
        return self._device.statistics

    def run_on_loop(self, function: Callable[[], None]) -> None:
        """Runs a function that does not block: now on the event loop's thread, soon from any other."""
        if get_ident() == self._loop_thread:
            function()
        else:
            self.inbox.hop(function)

    @property
    def offers_by_template(self) -> bool:
        """Whether models can be told of tools, and call them, in the chat template's format."""
        return self.opened.protocol is None and self.chat.tool_tags() is not None

    @property
    def is_recording(self) -> bool:
        return self.records or self.opened.answers_tools or self._observer is not None

    def record(self, event: Event) -> None:
        """Sends an event of the tree to the trace and to the observer, which must not raise; its errors are logged."""
        if self.records or self.opened.answers_tools:
            self.send(Record(event))
        if self._observer is not None:
            try:
                answer: object = self._observer(event)
                if isinstance(answer, Coroutine):
                    answer.close()
                    raise TypeError("it gave a coroutine, which nobody awaits; give a plain function.")
            except Exception:
                _log.exception("observer failed", observed=type(event).__name__)

    async def recorded(self) -> None:
        """Returns when the trace has what `record` was given, so that it survives the process from then on.

        At once where nothing is recorded. Raises nothing; a cancelled caller waits all the same, as for a `request`.
        """
        if self.records and not self.is_closed and self.inbox.failure is None:
            with suppress(EngineClosed, EngineFailed):
                await self.request(FlushRecording)

    async def acquire(self, nowait: bool) -> None:
        """Takes a place in the batching queue, waiting first come, first served. Raises `QueueFull` if told not to."""
        self.check()
        if not nowait:
            await self._queue.acquire()
            return
        try:
            self._queue.acquire_nowait()
        except anyio.WouldBlock:
            raise QueueFull(
                f"{self._queue_size} generates are queued or running, and nowait was asked for. Try again later, or "
                f"open the engine with a larger queue_size."
            ) from None

    def release(self) -> None:
        """Gives a place in the queue back."""
        self._queue.release()

    def encode(
        self, text: str | Sequence[int], after: Sequence[int] = (), *, parse_special_tokens: bool = True
    ) -> tuple[int, ...]:
        """Token ids of a text that follows others in a context, or checked ids of a sequence or an array.

        A text that a context begins with, alone or after what the tokenizer puts before texts, is encoded as the
        tokenizer encodes whole texts, but for what it puts at their end; any other text is a message. Special tokens
        that it spells out are parsed, or text without `parse_special_tokens`.

        Raises `PromptError` for text without a tokenizer, unknown words, and ids outside the vocabulary.
        """
        if not isinstance(text, str):
            return token_ids(text, self.opened.vocab_size, "text")
        tokenizer = self._tokenizer_for_text()
        if not after:
            return tuple(tokenizer.encode(text, add_special_tokens=True, parse_special_tokens=parse_special_tokens))
        if len(after) == len(tokenizer.leading) and tuple(after) == tokenizer.leading:
            return tuple(tokenizer.encode(text, parse_special_tokens=parse_special_tokens))
        return self.encode_message(text, parse_special_tokens=parse_special_tokens)

    def encode_message(self, text: str | Sequence[int], *, parse_special_tokens: bool = True) -> tuple[int, ...]:
        """Token ids of a text inside a context, without a space before it, or checked ids. Raises like `encode`."""
        if not isinstance(text, str):
            return token_ids(text, self.opened.vocab_size, "text")
        return tuple(self._tokenizer_for_text().encode_inside(text, parse_special_tokens=parse_special_tokens))

    def encode_prompt(self, prompt: str | Sequence[int], *, parse_special_tokens: bool = True) -> tuple[int, ...]:
        """Token ids of a root's prompt: as the protocol puts a text, or as the tokenizer does without one."""
        if isinstance(prompt, str) and self.opened.protocol is not None:
            return tuple(self.opened.protocol.prompt(prompt, parse_special_tokens=parse_special_tokens))
        return self.encode(prompt, parse_special_tokens=parse_special_tokens)

    def sampled_as(self, given: Sampling) -> Sampling:
        """What is given, and for the fields that it does not say what the checkpoint says."""
        return given.over(self.opened.sampling)

    async def make_matcher(self, constraint: Constraint, begun: Sequence[int]) -> Matcher:
        """The matcher of a constraint, made on a worker thread. Raises what `Matchers.make` does."""
        return await anyio.to_thread.run_sync(self._matchers.make, constraint, begun)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids; empty without a tokenizer."""
        return "" if self.opened.tokenizer is None else self.opened.tokenizer.decode(tokens)

    def text_after(self, context: Sequence[int], tokens: Sequence[int]) -> str:
        """What the text of a context grows by when tokens follow it; empty without a tokenizer."""
        return "" if self.opened.tokenizer is None else text_after(self.opened.tokenizer, context, tokens)

    def _tokenizer_for_text(self) -> Tokenizer:
        if self.opened.tokenizer is None:
            raise PromptError("The checkpoint has no tokenizer.json. Give token ids instead of text.")
        return self.opened.tokenizer

    def close(self) -> None:
        """Closes every thread that is still open and ends their calls with `EngineClosed`."""
        waiting = self.inbox.active_calls()
        for path in sorted(self.inbox.open, reverse=True):
            self.close_thread(path)
        self.is_closed = True
        for call in waiting:
            call.give(Failed(call.path, EngineClosed("The engine was closed while this thread was generating.")))

    def end(self) -> None:
        """The device has stopped: what it has not answered it will not answer."""
        self.inbox.fail_requests(lambda: EngineClosed("The engine was closed before the device had answered."))
        self._matchers.close()

    def _interrupt_below(self, account: Account) -> None:
        if not account.pending:
            return
        for call in self.inbox.active_calls():
            # What is closed has been interrupted, whether or not that was reported.
            is_running = not call.cut and call.path in self.inbox.open
            if is_running and any(above is account for above in call.account.upwards()):
                call.cut = True
                self.send(Interrupt(call.path, keep=KEEP_ALL))
