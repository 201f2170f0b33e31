"""Child threads: what runs in one, and how it ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import anyio

from runtime.console.logs import logger
from runtime.errors import LimitExceeded
from runtime.link.commands import ThreadPath
from runtime.results import Answer, Outcome, Usage, answered
from runtime.threads.driver import drive

if TYPE_CHECKING:
    from runtime.threads.joining import Arrivals
    from runtime.threads.thread import ReasoningThread

Program = Callable[["ReasoningThread"], Awaitable[str | Sequence[int] | None]]
"""What a program runs in a child: it gets the child's thread and returns the child's message, or None."""

_log = logger("runtime.threads")


class Child:
    """A child thread that was started; `join` on its parent gives its answer."""

    __slots__ = ("_prompt_length", "_prompt_start", "_run", "answer", "arrivals", "error", "is_joined", "thread")

    def __init__(self, thread: ReasoningThread, prompt_length: int, run: Program | None) -> None:
        self.thread = thread
        self._prompt_length = prompt_length
        self._prompt_start = 0
        self.answer: Answer | None = None
        """How it ended; None until then."""
        self.error: Exception | None = None
        """What it failed of; raised by whoever joins it."""
        self.is_joined = False
        self.arrivals: Arrivals | None = None
        self._run = run

    def __repr__(self) -> str:
        state = "running" if self.answer is None else "failed" if self.error else self.answer.reason
        return f"<Child {self.path} {state}>"

    @property
    def path(self) -> ThreadPath:
        return self.thread.path

    def receive_prompt(self, prompt: tuple[int, ...]) -> None:
        """Appends what the child is to see; a fork sees it after what it inherited."""
        self._prompt_start = len(self.thread.context.tokens)
        self.thread.context.extend(prompt)

    @property
    def prompt(self) -> tuple[int, ...]:
        """Token ids of the message it was given."""
        return tuple(self.thread.context.tokens[self._prompt_start : self._prompt_start + self._prompt_length])

    @property
    def usage(self) -> Usage:
        """Of the child and everything below it."""
        return self.thread.usage

    @property
    def is_done(self) -> bool:
        return self.answer is not None

    def cancel(self) -> None:
        """Stops the child and everything below it, soon; joining it then gives an answer with nothing in it."""
        self.thread.cancel()

    async def main(self) -> None:
        """The child's task. Errors are kept for the joiner, and cancellation ends here: only what ends programs, such
        as `KeyboardInterrupt`, goes on into the tree's task group."""
        thread = self.thread
        try:
            async with thread:
                run = self._run
                thread.outcome = await (drive(thread) if run is None else self._program(run))
        except LimitExceeded as error:
            # A model cannot help running out; a program can, and is told.
            if self._run is None:
                thread.outcome = Outcome((), "", "limit")
            else:
                self.error = error
        except Exception as error:
            self.error = error
        except anyio.get_cancelled_exc_class():
            # Whoever is cancelled along with this child has a scope of its own that says so.
            thread.outcome = None
        finally:
            if self.error is not None:
                _log.debug("child failed", thread=self.path, error=repr(self.error))
            outcome = thread.outcome if self.error is None else None
            ended = outcome or Outcome((), "", "nothing" if self.error else "cancelled")
            self.answer = answered(ended, self.path, self.usage)
            thread.lifetime.end()
            if self.arrivals is not None:
                self.arrivals.arrive(self)

    async def _program(self, run: Program) -> Outcome:
        message = await run(self.thread)
        frontend = self.thread.context.frontend
        tokens = () if message is None else frontend.encode_message(message)
        if message is None or not tokens:
            return Outcome((), "", "nothing")
        return Outcome(tokens, message if isinstance(message, str) else frontend.decode(tokens), "returned")
