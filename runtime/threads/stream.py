"""Streaming: a generate whose tokens are taken as they come."""

from __future__ import annotations

import warnings
from types import TracebackType
from typing import Self
from weakref import ref

from runtime.errors import ThreadStateError
from runtime.link.commands import Emitted, Failed, Finished, Interrupt
from runtime.model.incremental import IncrementalDecoder
from runtime.protocol.stop_strings import begins_stop
from runtime.threads.context import Context
from runtime.threads.generate_options import GenerateOptions
from runtime.threads.inbox import PendingGenerate
from runtime.threads.results import Chunk, Generation


class Stream:
    """Async iterator over the chunks of one generate; it starts with the first iteration.

    Left early (`break`, `aclose()`, cancellation, an error in the loop's body), the context keeps the tokens that
    were delivered and the device forgets the rest. A stream that nobody refers to any more is left at once; one that
    has a name is best used in `async with thread.stream(...) as stream:`, which leaves it at the end of the block.
    Otherwise it stays open until its thread is asked for something else, when it is left with a `ResourceWarning`.
    """

    def __init__(self, context: Context, options: GenerateOptions) -> None:
        context.check_idle("stream")
        self.generation: Generation | None = None
        """The whole generation, once the stream has ended by itself."""
        self._context = context
        self._options = options
        self._call: PendingGenerate | None = None
        self._has_ended = False
        self._is_awaited = False
        self._gave_way_to = ""
        self._delivered = 0
        self._decoder: IncrementalDecoder | None = None
        self._held = ""
        """Settled text that may be, or become, a stop string."""
        self._shown = 0
        """Characters of the generation's text that were delivered."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        """The tokens of the next tick that emitted some. Raises what `generate` raises, and `ThreadStateError` where
        the stream has given way to another call, or another task waits for it."""
        if self._gave_way_to:
            raise ThreadStateError(
                f"The stream of thread {self._context.path} was left when the thread was to {self._gave_way_to}. Do "
                f"that after the stream's loop, or on a fork."
            )
        if self._is_awaited:
            raise ThreadStateError(
                f"The stream of thread {self._context.path} is waited for already; let one task take its chunks."
            )
        if self._has_ended:
            raise StopAsyncIteration
        self._is_awaited = True
        try:
            return await self._next()
        finally:
            self._is_awaited = False

    async def _next(self) -> Chunk:
        if self._call is None:
            await self._context.enter(self._options.nowait)
            try:
                self._options = await self._context.with_matcher(self._options)
                tokenizer = self._context.session.opened.tokenizer
                self._decoder = None if tokenizer is None else IncrementalDecoder(tokenizer, self._context.tokens)
                self._call = self._context.begin(self._options, wants_reports=True)
            except BaseException:
                self._has_ended = True
                self._context.leave()
                raise
            self._context.lent_to = ref(self)
        try:
            chunk = await self._next_chunk(self._call)
        except BaseException:
            self._leave()
            raise
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """Leaves the stream early; nothing where it has ended."""
        self._leave()

    def give_way(self, wish: str) -> None:
        """Leaves the stream, with a `ResourceWarning`, because its thread is asked for something else; nothing while
        its next chunk is awaited."""
        if self._is_awaited:
            return
        warnings.warn(
            f"The stream of thread {self._context.path} was still open when the thread was to {wish}. Use streams in "
            f"`async with thread.stream(...) as stream:`, or aclose() them.",
            ResourceWarning,
            stacklevel=5,
        )
        self._gave_way_to = wish
        self._leave()

    async def _next_chunk(self, call: PendingGenerate) -> Chunk | None:
        while True:
            report = await call.next()
            if isinstance(report, Emitted):
                # Whoever takes the chunk may generate before asking for the next one, and needs a place for that.
                self._context.give_up_place()
                return self._deliver(report)
            if isinstance(report, Failed):
                raise report.error
            if isinstance(report, Finished):
                # What the last tick emitted may come with the end instead of a report of its own.
                told = self._delivered
                tokens = report.tokens[told:]
                self._context.add_sampled(tokens)
                self.generation = self._context.generation(call, report, self._options)
                self._has_ended = True
                self._context.leave()
                text = self.generation.text[self._shown :]
                if not text and not tokens:
                    return None
                return Chunk(text, tokens, report.logprobs[told:], report.top_logprobs[told:], report.depths[told:])

    def _deliver(self, report: Emitted) -> Chunk:
        tokens = report.tokens
        self._delivered += len(tokens)
        self._context.add_sampled(tokens)
        if self._decoder is not None:
            # A stop token is no text; it is the last one.
            stops = self._options.stop_tokens
            self._held += "".join(self._decoder.feed(token) for token in tokens if token not in stops)
        ready = begins_stop(self._held, self._options.stop_strings)
        text, self._held = self._held[:ready], self._held[ready:]
        self._shown += ready
        return Chunk(text, tokens, report.logprobs, report.top_logprobs, report.depths)

    def _leave(self) -> None:
        if self._call is None or self._has_ended:
            self._has_ended = True
            return
        self._has_ended = True
        self._context.session.send(Interrupt(self._context.path, keep=self._delivered))
        self._context.leave()

    def __del__(self) -> None:
        # After a `break` nothing refers to the stream any more, and this runs at once. The collector may also call it
        # on another thread.
        if getattr(self, "_call", None) is not None and not self._has_ended:
            self._context.session.run_on_loop(self._leave)
