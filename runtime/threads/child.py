"""Child threads: what runs in one, and how it ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from runtime.console.logs import logger
from runtime.link.commands import ThreadPath
from runtime.results import Answer, Outcome, Usage, answered
from runtime.threads.arrivals import Arrivals
from runtime.threads.context import Context
from runtime.threads.lifetime import Lifetime

_log = logger("runtime.threads")


class Child:
    """A child thread that was started; `join` on its parent gives its answer."""

    __slots__ = ("_lifetime", "_prompt_length", "_prompt_start", "answer", "arrivals", "context", "error", "is_joined")

    def __init__(self, context: Context, lifetime: Lifetime, prompt_length: int) -> None:
        self.context = context
        self._lifetime = lifetime
        self._prompt_length = prompt_length
        self._prompt_start = 0
        self.answer: Answer | None = None
        """How it ended; None until then."""
        self.error: Exception | None = None
        """What it failed of; raised by whoever joins it."""
        self.is_joined = False
        self.arrivals: Arrivals[Child] | None = None

    def __repr__(self) -> str:
        state = "running" if self.answer is None else "failed" if self.error else self.answer.reason
        return f"<Child {self.path} {state}>"

    @property
    def path(self) -> ThreadPath:
        return self.context.path

    def receive_prompt(self, prompt: tuple[int, ...]) -> None:
        """Appends what the child is to see; a fork sees it after what it inherited."""
        self._prompt_start = len(self.context.tokens)
        self.context.extend(prompt)

    @property
    def prompt(self) -> tuple[int, ...]:
        """Token ids of the message it was given."""
        return tuple(self.context.tokens[self._prompt_start : self._prompt_start + self._prompt_length])

    @property
    def usage(self) -> Usage:
        """Of the child and everything below it."""
        return self.context.account.usage()

    @property
    def is_done(self) -> bool:
        return self.answer is not None

    def cancel(self) -> None:
        """Stops the child and everything below it, soon; joining it then gives an answer with nothing in it."""
        self._lifetime.cancel()

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
            ended = outcome or Outcome((), "", "nothing" if self.error else "cancelled")
            self.answer = answered(ended, self.path, self.usage)
            self._lifetime.end()
            if self.arrivals is not None:
                self.arrivals.arrive(self)
