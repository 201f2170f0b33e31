"""A thread's context as its trace has it, and those that it had before something was cut out of it."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from runtime import TraceError
from runtime.link import Computed
from traces.generate_record import GenerateRecord
from traces.tree import Receipt, ThreadRecord, path_name


class Piece(NamedTuple):
    """Tokens `start .. end` of a context that came at once: received together, or sampled by one generate."""

    start: int
    end: int
    is_sampled: bool


class ThreadContext(msgspec.Struct, frozen=True, kw_only=True):
    """What stood in a thread's context, inherited tokens left out."""

    start: int
    """Position of the first of `tokens`: how many tokens were inherited."""
    earlier: int
    """How many of `tokens` had stood in an earlier context of the thread, before something after them was cut."""
    tokens: tuple[int, ...]
    logprobs: tuple[float | None, ...]
    """Nats, at which each token was sampled; None for received ones."""
    depths: tuple[int, ...]
    """Iterations at which each token was computed; 0 where this thread did not compute it, as the last one, those
    that another thread had computed for it, and those that were computed before the recording."""
    pieces: tuple[Piece, ...]
    """In order and without gaps."""

    @property
    def is_sampled(self) -> tuple[bool, ...]:
        """Which of `tokens` the thread sampled itself."""
        return tuple(logprob is not None for logprob in self.logprobs)


def context_of(record: ThreadRecord) -> ThreadContext:
    """A thread's context at its end, what was cut out of it left out.

    Raises `TraceError` for pieces that do not follow each other. Time is linear in what the trace has of the thread.
    """
    growing = _Growing(record)
    for _ in growing.until_cuts():
        pass
    return growing.context()


def contexts_of(record: ThreadRecord) -> list[ThreadContext]:
    """Every context that something was cut out of, as it was then, and the last: `context_of`.

    So whatever a thread sampled and heard of is in one of them, among the tokens that are not `earlier`. Raises
    `TraceError` as that does.
    """
    growing = _Growing(record)
    return [*(growing.context() for _ in growing.until_cuts()), growing.context()]


class _Growing:
    """A context while the events of its thread are gone through."""

    def __init__(self, record: ThreadRecord) -> None:
        self._record = record
        self._start = record.segments[0].position if record.segments else 0
        self._earlier = 0
        self._tokens: list[int] = []
        self._logprobs: list[float | None] = []
        self._depths: list[int] = []
        self._pieces: list[Piece] = []

    def until_cuts(self) -> Iterator[None]:
        """Goes through the thread's events, and stops before every cut."""
        record = self._record
        segments = ((segment.index, segment) for segment in record.segments)
        computed = zip(record.computed_indices, record.computed, strict=True)
        for _, event in heapq.merge(segments, computed, key=lambda indexed: indexed[0]):
            if isinstance(event, Computed):
                self._note_depth(event)
                continue
            if event.position < self._start + len(self._tokens):
                yield
                self._cut(event.position - self._start)
            self._append(event)

    def context(self) -> ThreadContext:
        return ThreadContext(
            start=self._start,
            earlier=self._earlier,
            tokens=tuple(self._tokens),
            logprobs=tuple(self._logprobs),
            depths=tuple(self._depths),
            pieces=tuple(self._pieces),
        )

    def _note_depth(self, done: Computed) -> None:
        first = max(0, done.position - self._start)
        for at in range(first, min(done.position + done.count - self._start, len(self._tokens))):
            self._depths[at] = done.depth

    def _cut(self, length: int) -> None:
        if length < 0:
            raise self._does_not_follow(self._start + length)
        self._earlier = length
        del self._tokens[length:], self._logprobs[length:], self._depths[length:]
        while self._pieces and self._pieces[-1].end > length:
            last = self._pieces.pop()
            if last.start < length:
                self._pieces.append(last._replace(end=length))

    def _append(self, segment: Receipt | GenerateRecord) -> None:
        start = len(self._tokens)
        if segment.position != self._start + start:
            raise self._does_not_follow(segment.position)
        self._tokens += segment.tokens
        self._depths += [0] * len(segment.tokens)
        if isinstance(segment, GenerateRecord):
            self._logprobs += (sample.logprob for sample in segment.kept)
        else:
            self._logprobs += [None] * len(segment.tokens)
        if segment.tokens:
            self._pieces.append(Piece(start, len(self._tokens), isinstance(segment, GenerateRecord)))

    def _does_not_follow(self, position: int) -> TraceError:
        return TraceError(
            f"Thread {path_name(self._record.path)}: tokens begin at position {position}, and its context has "
            f"{self._start} to {self._start + len(self._tokens)}."
        )
