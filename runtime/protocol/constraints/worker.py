"""Masks, computed beside the device thread."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import ConstraintError, described
from runtime.link.constraints import Words
from runtime.protocol.constraints.compiling import refused

if TYPE_CHECKING:
    from llguidance import LLMatcher


class PendingMask:
    """A `TokenMask` that the worker computes. Nothing may feed its matcher before it is ready."""

    def __init__(self, matcher: LLMatcher, name: str, ends: Words) -> None:
        self.matcher = matcher
        self.name = name
        """The kind of constraint, for errors."""
        self.ends = ends
        """Tokens that may come where the text may end, and only there."""
        self.failure: ConstraintError | None = None
        """Why all tokens are allowed: none is, or they could not be computed. The thread is to end with it."""
        self._words: Words | None = None
        self._done = threading.Event()

    def is_ready(self) -> bool:
        """See `TokenMask`."""
        return self._words is not None

    def wait(self) -> Words:
        """See `TokenMask`."""
        self._done.wait()
        assert self._words is not None
        return self._words

    def fulfil(self, words: Words) -> None:
        """Gives what was computed to who waits."""
        self._words = words
        self._done.set()


class MaskWorker:
    """A thread that computes masks in the order in which they are asked for, without the interpreter's lock."""

    def __init__(self, vocab_size: int) -> None:
        """The model's tokens are below `vocab_size`."""
        self._vocab_size = vocab_size
        self._known = _words_of(range(vocab_size), vocab_size)
        self._ends: dict[frozenset[int], Words] = {}
        self._asked: SimpleQueue[PendingMask | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="braid-masks", daemon=True)
        self._thread.start()

    def ask(self, matcher: LLMatcher, name: str, ends: frozenset[int]) -> PendingMask:
        """The mask of the tokens that may come next; `ends` are among them where the text may end, and only there.
        `name` is the kind of constraint, for errors."""
        words = self._ends.get(ends)
        if words is None:
            words = _words_of([token for token in ends if token < self._vocab_size], self._vocab_size)
            self._ends[ends] = words
        pending = PendingMask(matcher, name, words)
        self._asked.put(pending)
        return pending

    def stop(self) -> None:
        """Ends the thread when what was asked for is computed."""
        self._asked.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (pending := self._asked.get()) is not None:
            try:
                words = self._computed(pending)
            except Exception as error:
                pending.failure = ConstraintError(f"The mask of a {pending.name} failed: {described(error)}")
                words = self._known
            pending.fulfil(words)

    def _computed(self, pending: PendingMask) -> Words:
        matcher = pending.matcher
        if matcher.is_stopped() and not matcher.is_error():
            # Nothing but an end can follow.
            return pending.ends
        words = np.frombuffer(matcher.compute_bitmask(), np.uint32)[: len(self._known)] & self._known & ~pending.ends
        if matcher.is_error():
            pending.failure = refused(pending.name, matcher.get_error())
            return self._known
        if matcher.is_accepting():
            words |= pending.ends
        if not words.any():
            pending.failure = ConstraintError(
                f"No token of the model's vocabulary can go on with the {pending.name}. Ask for a text that "
                "its tokens can write, from where it begins"
            )
            return self._known
        return words


def _words_of(tokens: Iterable[int], vocab_size: int) -> Words:
    bits = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
    bits[list(tokens)] = 1
    return np.packbits(bits, bitorder="little").view(np.uint32)
