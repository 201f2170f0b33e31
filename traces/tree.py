"""From events to a tree of threads: what each received, generated, spawned, spent and returned."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from runtime.errors import TraceError
from traces import events as ev
from traces.events import AnyEvent, ThreadPath


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens appended to a thread's context from outside: its prompt, or a message."""

    index: int
    """Which event of the trace this is, from 0; stories order what they hold by it."""
    time: float
    position: int
    tokens: tuple[int, ...]


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One generate of a thread. What its end tells is None where the trace has no end of it."""

    index: int
    """Which event of the trace began it."""
    started: float
    position: int
    max_tokens: int
    max_iterations: int | None
    sampling: Any
    depth: Any
    samples: tuple[ev.Sampled, ...]
    """Everything sampled, kept or not, in order."""
    sample_indices: tuple[int, ...]
    """Which events of the trace the samples are."""
    ended: float | None = None
    end_index: int | None = None
    end_position: int | None = None
    """Length of the context afterwards."""
    reason: str | None = None
    error: str | None = None
    """Why it failed, if it did."""
    sampled: int | None = None
    computed: int | None = None
    iterations: int | None = None
    recomputed: int | None = None
    reused: int | None = None
    received: int | None = None

    @property
    def kept(self) -> tuple[ev.Sampled, ...]:
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


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """A thread was parked at a join from `started` to `ended`, seconds."""

    started: float
    ended: float
    joined: ev.Joined


class ThreadStory(msgspec.Struct, frozen=True, kw_only=True):
    """All that a trace says of one thread. Times are seconds; None where the trace has no such event."""

    path: ThreadPath
    inherits: ThreadPath | None
    seed: int | None
    depth: Any
    prompt: str | None
    """What the user asked, for a root thread."""
    opened: float | None
    closed: float | None
    first: float | None
    """Time of its first event of any kind; `last` of its last."""
    last: float | None
    receipts: tuple[Receipt, ...]
    calls: tuple[Call, ...]
    computed: tuple[ev.Computed, ...]
    spawns: tuple[ev.Spawned, ...]
    waits: tuple[Wait, ...]
    evictions: tuple[ev.Evicted, ...]
    outcome: str | None
    """Is "returned", "nothing", "cancelled" or "failed"; None for a thread that the trace does not see ending."""
    error: str
    failure_index: int | None
    """Which event of the trace says that the device could not go on with it."""
    text: str
    message: tuple[int, ...]
    children: tuple[ThreadStory, ...]

    @property
    def received(self) -> int:
        """Tokens received, inherited context not counted."""
        return sum(len(receipt.tokens) for receipt in self.receipts)

    @property
    def sampled(self) -> int:
        """Tokens sampled, kept or not."""
        return sum(len(call.samples) for call in self.calls)

    @property
    def iterations(self) -> int:
        """Token-iterations that its calls report; of calls without an end, those of tokens that were computed."""
        if all(call.iterations is not None for call in self.calls):
            return sum(call.iterations or 0 for call in self.calls)
        return sum(done.count * done.depth for done in self.computed)

    @property
    def mean_depth(self) -> float:
        """Iterations per sampled token; NaN without any."""
        depths = [sample.depth for call in self.calls for sample in call.samples]
        return sum(depths) / len(depths) if depths else math.nan

    @property
    def segments(self) -> tuple[Receipt | Call, ...]:
        """Receipts and calls in the order in which they happened."""
        return tuple(sorted((*self.receipts, *self.calls), key=lambda segment: segment.index))


def tree_of(events: Iterable[AnyEvent]) -> tuple[ThreadStory, ...]:
    """The root threads of a trace's events, children inside, in order of path.

    Works on any prefix of a trace; a thread whose parent is not in it is with the nearest of those above that is, or a
    root. Time and memory are linear in what the events hold, but for sorting. Raises `TraceError` for events that no
    engine writes in that order: a thread opened twice, or a sample outside of a generate.
    """
    own: dict[ThreadPath, list[tuple[int, AnyEvent]]] = defaultdict(list)
    for index, event in enumerate(events):
        if isinstance(event, ev.TickDone):
            continue
        path = event.thread
        own[path].append((index, event))
        if isinstance(event, ev.Spawned) and event.child is not None:
            # A child is part of the tree even if it was never opened.
            own.setdefault(event.child, [])
    # Every path follows those above it, of which a stack holds the ones that have not ended.
    roots: list[ThreadStory] = []
    above: list[tuple[ThreadPath, list[ThreadStory]]] = []
    for path in [*sorted(own), ()]:
        while above and above[-1][0] != path[: len(above[-1][0])]:
            done, children = above.pop()
            story = _story(done, own[done], tuple(children))
            (above[-1][1] if above else roots).append(story)
        above.append((path, []))
    return tuple(roots)


def walk(roots: Iterable[ThreadStory]) -> Iterator[ThreadStory]:
    """Every thread of a tree, each before its children."""
    stack = list(reversed(list(roots)))
    while stack:
        story = stack.pop()
        yield story
        stack.extend(reversed(story.children))


def path_name(path: ThreadPath) -> str:
    """A thread's path as people read it: "0.2.1"."""
    return ".".join(map(str, path))


def _story(path: ThreadPath, own: list[tuple[int, AnyEvent]], children: tuple[ThreadStory, ...]) -> ThreadStory:
    opened: ev.ThreadOpened | None = None
    ended: ev.ThreadEnded | None = None
    closed: float | None = None
    prompt: str | None = None
    failure: ev.ThreadFailed | None = None
    failure_index: int | None = None
    receipts: list[Receipt] = []
    calls: list[Call] = []
    computed: list[ev.Computed] = []
    spawns: list[ev.Spawned] = []
    waits: list[Wait] = []
    evictions: list[ev.Evicted] = []
    current: _OpenCall | None = None
    free_since: float | None = None
    for index, event in own:
        match event:
            case ev.ThreadOpened():
                if opened is not None:
                    raise TraceError(f"Event {index}: thread {path_name(path)} is opened a second time.")
                opened = event
                free_since = event.time
            case ev.RunStarted():
                prompt = event.prompt
            case ev.Received():
                receipts.append(Receipt(index=index, time=event.time, position=event.position, tokens=event.tokens))
            case ev.GenerateStarted():
                if current is not None:
                    calls.append(current.unfinished())
                current = _OpenCall(index, event)
            case ev.Sampled():
                if current is None:
                    raise TraceError(f"Event {index}: thread {path_name(path)} samples outside of a generate.")
                current.samples.append(event)
                current.indices.append(index)
            case ev.GenerateFinished():
                if current is not None:
                    calls.append(current.finished(index, event))
                elif calls and calls[-1].error is not None and calls[-1].sampled is None:
                    calls[-1] = _with_counts(calls[-1], event)
                else:
                    raise TraceError(f"Event {index}: thread {path_name(path)} ends a generate that never began.")
                current = None
                free_since = event.time
            case ev.ThreadFailed():
                failure = event
                failure_index = index
                if current is not None:
                    calls.append(current.failed(index, event))
                    current = None
            case ev.Joined():
                waits.append(
                    Wait(started=event.time if free_since is None else free_since, ended=event.time, joined=event)
                )
                free_since = event.time
            case ev.ThreadClosed():
                closed = event.time
            case ev.ThreadEnded():
                ended = event
            case ev.Computed():
                computed.append(event)
            case ev.Spawned():
                spawns.append(event)
            case ev.Evicted():
                evictions.append(event)
            case ev.TickDone():
                pass
    if current is not None:
        calls.append(current.unfinished())
    times = [event.time for _, event in own]
    return ThreadStory(
        path=path,
        inherits=opened.inherits if opened else None,
        seed=opened.seed if opened else None,
        depth=opened.depth if opened else None,
        prompt=prompt,
        opened=opened.time if opened else None,
        closed=closed,
        first=min(times, default=None),
        last=max(times, default=None),
        receipts=tuple(receipts),
        calls=tuple(calls),
        computed=tuple(computed),
        spawns=tuple(spawns),
        waits=tuple(waits),
        evictions=tuple(evictions),
        outcome=ended.outcome if ended else "failed" if failure else None,
        error=(ended.error if ended else "") or (failure.error if failure else ""),
        failure_index=failure_index,
        text=ended.text if ended else "",
        message=ended.message if ended else (),
        children=children,
    )


class _OpenCall:
    """A generate while its events are gathered."""

    def __init__(self, index: int, started: ev.GenerateStarted) -> None:
        self.index = index
        self.started = started
        self.samples: list[ev.Sampled] = []
        self.indices: list[int] = []

    def unfinished(self) -> Call:
        started = self.started
        return Call(
            index=self.index,
            started=started.time,
            position=started.position,
            max_tokens=started.max_tokens,
            max_iterations=started.max_iterations,
            sampling=started.sampling,
            depth=started.depth,
            samples=tuple(self.samples),
            sample_indices=tuple(self.indices),
        )

    def finished(self, index: int, end: ev.GenerateFinished) -> Call:
        return _with_counts(msgspec.structs.replace(self.unfinished(), ended=end.time, end_index=index), end)

    def failed(self, index: int, end: ev.ThreadFailed) -> Call:
        return msgspec.structs.replace(self.unfinished(), ended=end.time, end_index=index, error=end.error)


def _with_counts(call: Call, end: ev.GenerateFinished) -> Call:
    """What a call's end says; it follows the failure where there was one."""
    return msgspec.structs.replace(
        call,
        end_position=end.position,
        reason=end.reason,
        sampled=end.sampled,
        computed=end.computed,
        iterations=end.iterations,
        recomputed=end.recomputed,
        reused=end.reused,
        received=end.received,
    )
