"""One generate of a recorded thread: what it was asked for, what it sampled, and how it ended."""

from __future__ import annotations

from typing import Any

import msgspec

from runtime.link import Constraint, GenerateFinished, GenerateStarted, Sampled, Scored, ThreadFailed, Work


class GenerateRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One generate of a thread. What its end tells is None where the trace has no end of it."""

    index: int
    """Which event of the trace began it."""
    started: float
    position: int
    max_tokens: int
    max_iterations: int | None
    sampling: Any
    depth: Any
    samples: tuple[Sampled, ...]
    """Everything sampled, kept or not, in order."""
    sample_indices: tuple[int, ...]
    """Which events of the trace the samples are."""
    scores: tuple[int, ...] = ()
    """Tokens that it was asked to score, in place of any to sample."""
    fills: bool = False
    """Whether it only computed the context to its last token."""
    constraint: Constraint | None = None
    """What its tokens were constrained to."""
    scored: tuple[Scored, ...] = ()
    """What it had scored, in order; none of it stayed in the context."""
    ended: float | None = None
    end_index: int | None = None
    end_position: int | None = None
    """Length of the context afterwards."""
    reason: str | None = None
    error: str | None = None
    """Why it failed, if it did."""
    work: Work | None = None
    """What it cost."""

    @property
    def kept(self) -> tuple[Sampled, ...]:
        """The samples that stayed in the context."""
        if self.end_position is None:
            return self.samples
        return tuple(sample for sample in self.samples if sample.position < self.end_position)

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(sample.token for sample in self.kept)

    @property
    def depths(self) -> tuple[int, ...]:
        return tuple(sample.depth for sample in self.kept)


class OpenCall:
    """A generate while its events are gathered."""

    def __init__(self, index: int, started: GenerateStarted) -> None:
        self.index = index
        self.started = started
        self.samples: list[Sampled] = []
        self.scored: list[Scored] = []
        self.indices: list[int] = []

    def unfinished(self) -> GenerateRecord:
        started = self.started
        return GenerateRecord(
            index=self.index,
            started=started.time,
            position=started.position,
            max_tokens=started.max_tokens,
            max_iterations=started.max_iterations,
            sampling=started.sampling,
            depth=started.depth,
            samples=tuple(self.samples),
            sample_indices=tuple(self.indices),
            scores=started.scores,
            fills=started.fills,
            constraint=started.constraint,
            scored=tuple(self.scored),
        )

    def finished(self, index: int, end: GenerateFinished) -> GenerateRecord:
        return with_counts(msgspec.structs.replace(self.unfinished(), ended=end.time, end_index=index), end)

    def failed(self, index: int, end: ThreadFailed) -> GenerateRecord:
        return msgspec.structs.replace(self.unfinished(), ended=end.time, end_index=index, error=end.error)


def with_counts(call: GenerateRecord, end: GenerateFinished) -> GenerateRecord:
    """What a call's end says; it follows the failure where there was one."""
    return msgspec.structs.replace(
        call,
        end_position=end.position,
        reason=end.reason,
        work=end.work,
    )
