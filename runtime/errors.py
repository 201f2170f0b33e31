"""Every error the runtime raises on purpose. Each message says what is wrong and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.answer import Answer


class BraidError(Exception):
    """Base of all errors raised by Braid on purpose."""


class CheckpointError(BraidError):
    """A directory is not a loadable checkpoint; the message names the file, the key and what was expected."""


class PromptError(BraidError):
    """A prompt cannot be encoded or does not fit the model's context."""


class ProtocolError(BraidError):
    """A thread emitted, or a user declared, something its spawn and join protocol does not allow."""


class PolicyError(BraidError):
    """A policy raised or answered something unusable; ends the thread it was asked for, not the engine."""


class LimitExceeded(BraidError):
    """A thread used up one of its limits (tokens, iterations, threads, tree depth or wall time)."""

    answer: Answer | None = None
    """Where `Engine.run` raised it: what the tree came to by then, its path and usage, without a text."""


class CapacityError(BraidError):
    """A single thread needs more memory than the whole pool has."""


class QueueFull(BraidError):
    """The batching queue is full and the caller asked not to wait."""


class EngineClosed(BraidError):
    """The engine was closed, or has not been opened, when a thread needed it."""


class EngineFailed(BraidError):
    """The device failed; the cause is chained. Every waiter of the engine gets this error."""


class TraceError(BraidError):
    """A trace file cannot be read or does not fit the run it is compared with."""


class ThreadStateError(BraidError, RuntimeError):
    """A reasoning thread was used in a way its present state does not allow; the message says what to do instead."""
