"""Streaming: a generate whose tokens are taken as they come."""

from __future__ import annotations

from typing import Self

from runtime.answer import Chunk, Generation
from runtime.commands import Emitted, Failed, Finished, Interrupt
from runtime.context import Context, GenerateOptions
from runtime.inbox import Call
from runtime.model.incremental import IncrementalDecoder
from runtime.protocol.stop_strings import begins_stop


class Stream:
    """Async iterator over the chunks of one generate; it starts with the first iteration.

    Left early (`break`, `aclose()`, cancellation, an error in the loop's body), the context keeps the tokens that
    were delivered and the device forgets the rest. While a stream is open its thread can do nothing else.
    """

    def __init__(self, context: Context, options: GenerateOptions) -> None:
        context.check_idle("stream")
        self.generation: Generation | None = None
        """The whole generation, once the stream has ended by itself."""
        self._context = context
        self._options = options
        self._call: Call | None = None
        self._has_ended = False
        self._delivered = 0
        self._decoder: IncrementalDecoder | None = None
        self._held = ""
        """Settled text that may be, or become, a stop string."""
        self._shown = 0
        """Characters of the generation's text that were delivered."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        """The tokens of the next tick that emitted some. Raises what `generate` raises."""
        if self._has_ended:
            raise StopAsyncIteration
        if self._call is None:
            await self._context.enter(self._options.nowait)
            try:
                tokenizer = self._context.frontend.tokenizer
                self._decoder = None if tokenizer is None else IncrementalDecoder(tokenizer, self._context.tokens)
                self._call = self._context.begin(self._options, hears=True)
            except BaseException:
                self._has_ended = True
                self._context.leave()
                raise
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

    async def _next_chunk(self, call: Call) -> Chunk | None:
        while True:
            report = await call.next()
            if isinstance(report, Emitted):
                return self._deliver(report.tokens)
            if isinstance(report, Failed):
                raise report.error
            if isinstance(report, Finished):
                # What the last tick emitted may come with the end instead of a report of its own.
                tokens = report.tokens[self._delivered :]
                self._context.add_sampled(tokens)
                self.generation = self._context.generation(call, report, self._options)
                self._has_ended = True
                self._context.leave()
                text = self.generation.text[self._shown :]
                return Chunk(text, tokens) if text or tokens else None

    def _deliver(self, tokens: tuple[int, ...]) -> Chunk:
        self._delivered += len(tokens)
        self._context.add_sampled(tokens)
        if self._decoder is not None:
            # A stop token is no text; it is the last one.
            stops = self._options.stop_tokens
            self._held += "".join(self._decoder.feed(token) for token in tokens if token not in stops)
        ready = begins_stop(self._held, self._options.stop_strings)
        text, self._held = self._held[:ready], self._held[ready:]
        self._shown += ready
        return Chunk(text, tokens)

    def _leave(self) -> None:
        if self._call is None or self._has_ended:
            self._has_ended = True
            return
        self._has_ended = True
        self._context.frontend.send(Interrupt(self._context.path, keep=self._delivered))
        self._context.leave()

    def __del__(self) -> None:
        # After a `break` nothing refers to the stream any more, and this runs at once. The collector may also call it
        # on another thread.
        if getattr(self, "_call", None) is not None and not self._has_ended:
            self._context.frontend.run_on_loop(self._leave)
