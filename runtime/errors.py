"""Every error the runtime raises on purpose. Each message says what is wrong and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.threads.results import Answer


class BraidError(Exception):
    """Base of all errors raised by Braid on purpose. The message ends in one full stop, whatever it quotes last."""

    def __init__(self, message: str = "") -> None:
        super().__init__(f"{message.rstrip(' .')}." if message else "")


class CheckpointError(BraidError):
    """A directory is not a loadable checkpoint; the message names the file, the key and what was expected."""


class PromptError(BraidError, ValueError):
    """A prompt cannot be encoded or does not fit the model's context."""


class ProtocolError(BraidError):
    """A thread emitted, or a user declared, something its spawn and join protocol does not allow."""


class ConstraintError(BraidError, ValueError):
    """What tokens are to be constrained to cannot be followed: it is malformed, or no token of the model can."""


class PolicyError(BraidError):
    """A policy raised or answered something unusable; ends the thread it was asked for, not the engine."""


class LimitExceeded(BraidError):
    """A thread used up one of its limits (tokens, iterations, threads, tree depth or wall time)."""

    answer: Answer | None = None
    """Where `Engine.run` raised it: what the tree came to by then, its path and usage, without a text."""


class ToolError(BraidError):
    """A tool that a thread called failed, took too long or got arguments that do not fit; the cause is chained."""


class NumericalError(BraidError):
    """A model computed numbers that are not finite; ends the thread whose token it was, not the engine."""


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


class RemoteError(BraidError):
    """A server that runs the model cannot be reached, refuses what is asked, or broke off too often; ends the generate
    that asked, not the engine."""


class ThreadStateError(BraidError, RuntimeError):
    """A reasoning thread was used in a way its present state does not allow; the message says what to do instead."""


def described(error: BaseException) -> str:
    """An error's kind and text, to be quoted in a sentence: without its full stop, and whatever its text does."""
    try:
        text = str(error).rstrip(" .")
    except BaseException:
        text = "its text cannot be had"
    return f"{type(error).__name__}: {text}"


def device_error(thread: tuple[int, ...], cause: BaseException) -> BraidError:
    """What a thread ends with when the device raised something unforeseen while it worked for that thread alone."""
    error = BraidError(f"Thread {thread} ended, because the device failed for it: {described(cause)}.")
    error.__cause__ = cause
    return error


# What both sides of the crossing refuse: the event loop before a command is sent, the device where one is sent anyway.


def busy(thread: tuple[int, ...], wish: str) -> ThreadStateError:
    """A thread that generates can do nothing else meanwhile."""
    return ThreadStateError(
        f"Thread {thread} cannot {wish} while it is generating. Wait for its generate, finish or aclose() its stream, "
        f"or use a fork."
    )


def empty_context(thread: tuple[int, ...]) -> ThreadStateError:
    """Nothing can be said after nothing."""
    return ThreadStateError(f"Thread {thread} has an empty context. Append a prompt before it generates.")


def fresh_join(thread: tuple[int, ...]) -> ThreadStateError:
    """Nothing has been read at the position at which a thread goes on after a merged join."""
    return ThreadStateError(
        f"Thread {thread} has nothing to go on from after its merged join: there are no logits there. Append a token "
        "first, such as the tag that its model was trained to find there."
    )


def changed_since_fork(thread: tuple[int, ...], child: tuple[int, ...]) -> ThreadStateError:
    """A thread's context is no longer the one that a child was forked from."""
    return ThreadStateError(
        f"Thread {thread} has changed since it forked {child}, so that their contexts cannot be merged. Fork all "
        "children of a join, and join them, before it goes on; or join with merge=False."
    )


def row_full(thread: tuple[int, ...]) -> CapacityError:
    """Too much was merged into a context."""
    return CapacityError(
        f"Thread {thread} has so many merged children that no row of pages can show what would follow. Merge fewer, or "
        "lower EngineSettings.page_size."
    )


def context_full(thread: tuple[int, ...], length: int, most: int) -> PromptError:
    """A context would have `length` tokens, where the model's holds `most`."""
    return PromptError(
        f"Thread {thread} would have {length} tokens; the model's context holds {most}. Shorten what is appended, or "
        f"let children carry part of it."
    )


def prompt_too_long(length: int, most: int) -> PromptError:
    """A thread cannot begin with `length` tokens, where the model's context holds `most`."""
    return PromptError(
        f"The prompt has {length} tokens; the model's context holds {most}. Shorten it, or give children parts of it."
    )


def no_token(what: str, ids: int) -> PromptError:
    """Something is none of the ids from 0, of which there are `ids`."""
    return PromptError(f"{what}: not a token id, of which there are 0 to {ids - 1}.")
