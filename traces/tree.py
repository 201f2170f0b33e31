"""From events to a tree of threads: what each received, generated, spawned, spent and returned."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from runtime import TraceError
from runtime.link import (
    AnyEvent,
    Computed,
    Evicted,
    GenerateFinished,
    GenerateStarted,
    Joined,
    Merged,
    MessageSent,
    MessagesReceived,
    Posted,
    Received,
    RunStarted,
    Sampled,
    Scored,
    Spawned,
    ThreadClosed,
    ThreadEnded,
    ThreadFailed,
    ThreadOpened,
    ThreadPath,
    TickDone,
    ToolCalled,
)
from traces.generate_record import GenerateRecord, OpenCall, with_counts


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens appended to a thread's context from outside: its prompt, a message, or what children had."""

    index: int
    """Which event of the trace this is, from 0; records order what they hold by it."""
    time: float
    position: int
    tokens: tuple[int, ...]
    merged: tuple[ThreadPath, ...] | None = None
    """The children whose keys and values it was, taken over as they were; None for what was received."""


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """A thread was parked at a join from `started` to `ended`, seconds."""

    started: float
    ended: float
    joined: Joined


class ThreadRecord(msgspec.Struct, frozen=True, kw_only=True):
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
    calls: tuple[GenerateRecord, ...]
    computed: tuple[Computed, ...]
    computed_indices: tuple[int, ...]
    """Which events of the trace those are."""
    spawns: tuple[Spawned, ...]
    waits: tuple[Wait, ...]
    evictions: tuple[Evicted, ...]
    outcome: str | None
    """Is "returned", "nothing", "cancelled" or "failed"; None for a thread that the trace does not see ending."""
    error: str
    failure_index: int | None
    """Which event of the trace says that the device could not go on with it."""
    text: str
    message: tuple[int, ...]
    children: tuple[ThreadRecord, ...]
    tool: ToolCalled | None = None
    """Of a call of a tool, what was called; its result is the text, and it has no tokens."""
    end_index: int | None = None
    """Which event of the trace says how it ended."""
    mail: tuple[MessageSent | Posted | MessagesReceived, ...] = ()
    """What it sent, posted and received of other threads, in order."""

    @property
    def call(self) -> str:
        """Of a call of a tool, how it was called, as people read it; empty for a thread."""
        return "" if self.tool is None else f"{self.tool.name}({self.tool.arguments})"

    @property
    def thread_spawns(self) -> tuple[Spawned, ...]:
        """The children that it asked for and that are threads, granted or not; calls of tools are none."""
        tools = {child.path for child in self.children if child.tool is not None}
        return tuple(spawn for spawn in self.spawns if spawn.child not in tools)

    @property
    def received(self) -> int:
        """Tokens received, neither inherited nor merged ones."""
        return sum(len(receipt.tokens) for receipt in self.receipts if receipt.merged is None)

    @property
    def generated(self) -> int:
        """Tokens sampled, kept or not."""
        return sum(len(call.samples) for call in self.calls)

    @property
    def iterations(self) -> int:
        """Token-iterations that its calls report; of calls without an end, those of tokens that were computed."""
        spent = [call.work.iterations for call in self.calls if call.work is not None]
        if len(spent) == len(self.calls):
            return sum(spent)
        return sum(done.count * done.depth for done in self.computed)

    @property
    def mean_depth(self) -> float:
        """Iterations per sampled token; NaN without any."""
        depths = [sample.depth for call in self.calls for sample in call.samples]
        return sum(depths) / len(depths) if depths else math.nan

    @property
    def segments(self) -> tuple[Receipt | GenerateRecord, ...]:
        """Receipts and calls in the order in which they happened."""
        return tuple(sorted((*self.receipts, *self.calls), key=lambda segment: segment.index))


def thread_tree(events: Iterable[AnyEvent]) -> tuple[ThreadRecord, ...]:
    """The root threads of a trace's events, children inside, in order of path.

    Works on any prefix of a trace; a thread whose parent is not in it is with the nearest of those above that is, or a
    root. Time and memory are linear in what the events hold, but for sorting. Raises `TraceError` for events that no
    engine writes in that order: a thread opened twice, or called as a tool; a sample outside of a generate; or a
    generate, a receipt or the thread's closing within one.
    """
    own: dict[ThreadPath, list[tuple[int, AnyEvent]]] = defaultdict(list)
    for index, event in enumerate(events):
        if isinstance(event, TickDone):
            continue
        path = event.thread
        own[path].append((index, event))
        if isinstance(event, Spawned) and event.child is not None:
            # A child is part of the tree even if it was never opened.
            own.setdefault(event.child, [])
    # Every path follows those above it, of which a stack holds the ones that have not ended.
    roots: list[ThreadRecord] = []
    above: list[tuple[ThreadPath, list[ThreadRecord]]] = []
    for path in [*sorted(own), ()]:
        while above and above[-1][0] != path[: len(above[-1][0])]:
            done, children = above.pop()
            gathering = _Gathering(done)
            for index, event in own[done]:
                gathering.take(index, event)
            (above[-1][1] if above else roots).append(gathering.record(tuple(children)))
        above.append((path, []))
    return tuple(roots)


def walk_threads(roots: Iterable[ThreadRecord]) -> Iterator[ThreadRecord]:
    """Every thread of a tree, each before its children."""
    stack = list(reversed(list(roots)))
    while stack:
        record = stack.pop()
        yield record
        stack.extend(reversed(record.children))


def path_name(path: ThreadPath) -> str:
    """A thread's path as people read it: "0.2.1"."""
    return ".".join(map(str, path))


class _Gathering:
    """What the events of one thread say, gathered in their order."""

    def __init__(self, path: ThreadPath) -> None:
        self._path = path
        self._opened: ThreadOpened | None = None
        self._ended: ThreadEnded | None = None
        self._end_index: int | None = None
        self._tool: ToolCalled | None = None
        self._closed: float | None = None
        self._prompt: str | None = None
        self._failure: ThreadFailed | None = None
        self._failure_index: int | None = None
        self._receipts: list[Receipt] = []
        self._calls: list[GenerateRecord] = []
        self._computed: list[Computed] = []
        self._computed_indices: list[int] = []
        self._spawns: list[Spawned] = []
        self._waits: list[Wait] = []
        self._evictions: list[Evicted] = []
        self._current: OpenCall | None = None
        self._mail: list[MessageSent | Posted | MessagesReceived] = []
        self._free_since: float | None = None
        self._first, self._last = math.inf, -math.inf

    def take(self, index: int, event: AnyEvent) -> None:
        self._first, self._last = min(self._first, event.time), max(self._last, event.time)
        match event:
            case ThreadOpened():
                if self._opened is not None or self._tool is not None:
                    raise self._does_not_fit(index, "is opened a second time")
                self._opened = event
                self._free_since = event.time
            case RunStarted():
                self._prompt = event.prompt
            case Received():
                self._expect_no_call(index, "receives tokens")
                self._receipts.append(
                    Receipt(index=index, time=event.time, position=event.position, tokens=event.tokens)
                )
            case Merged():
                self._expect_no_call(index, "takes children over")
                self._receipts.append(
                    Receipt(
                        index=index,
                        time=event.time,
                        position=event.position,
                        tokens=event.tokens,
                        merged=event.children,
                    )
                )
            case Computed():
                self._computed.append(event)
                self._computed_indices.append(index)
            case Spawned():
                self._spawns.append(event)
            case Joined():
                started = event.time if self._free_since is None else self._free_since
                self._waits.append(Wait(started=started, ended=event.time, joined=event))
                self._free_since = event.time
            case Evicted():
                self._evictions.append(event)
            case MessageSent() | Posted() | MessagesReceived():
                self._mail.append(event)
            case ThreadClosed():
                self._expect_no_call(index, "is closed")
                self._closed = event.time
            case ThreadEnded():
                self._ended, self._end_index = event, index
            case ToolCalled():
                if self._opened is not None or self._tool is not None:
                    raise self._does_not_fit(index, "is called as a tool")
                self._tool = event
            case GenerateStarted() | Sampled() | Scored() | GenerateFinished() | ThreadFailed():
                self._take_of_call(index, event)
            case TickDone():
                pass

    def _take_of_call(
        self, index: int, event: GenerateStarted | Sampled | Scored | GenerateFinished | ThreadFailed
    ) -> None:
        current = self._current
        match event:
            case GenerateStarted():
                self._expect_no_call(index, "begins a generate")
                self._current = OpenCall(index, event)
            case Sampled():
                if current is None:
                    raise self._does_not_fit(index, "samples outside of a generate")
                current.samples.append(event)
                current.indices.append(index)
            case Scored():
                if current is None or len(current.scored) == len(current.started.scores):
                    raise self._does_not_fit(index, "scores what it was not asked to")
                current.scored.append(event)
            case GenerateFinished():
                if current is not None:
                    self._calls.append(current.finished(index, event))
                elif self._calls and self._calls[-1].error is not None and self._calls[-1].work is None:
                    self._calls[-1] = with_counts(self._calls[-1], event)
                else:
                    raise self._does_not_fit(index, "ends a generate that never began")
                self._current = None
                self._free_since = event.time
            case ThreadFailed():
                self._failure, self._failure_index = event, index
                if current is not None:
                    self._calls.append(current.failed(index, event))
                    self._current = None

    def record(self, children: tuple[ThreadRecord, ...]) -> ThreadRecord:
        """The thread, when all its events have been taken."""
        if self._current is not None:
            self._calls.append(self._current.unfinished())
        opened, ended, failure = self._opened, self._ended, self._failure
        was_seen = self._first <= self._last
        return ThreadRecord(
            path=self._path,
            inherits=opened.inherits if opened else None,
            seed=opened.seed if opened else None,
            depth=opened.depth if opened else None,
            prompt=self._prompt,
            opened=opened.time if opened else None,
            closed=self._closed,
            first=self._first if was_seen else None,
            last=self._last if was_seen else None,
            receipts=tuple(self._receipts),
            calls=tuple(self._calls),
            computed=tuple(self._computed),
            computed_indices=tuple(self._computed_indices),
            spawns=tuple(self._spawns),
            waits=tuple(self._waits),
            evictions=tuple(self._evictions),
            outcome=ended.outcome if ended else "failed" if failure else None,
            error=(ended.error if ended else "") or (failure.error if failure else ""),
            failure_index=self._failure_index,
            text=ended.text if ended else "",
            message=ended.message if ended else (),
            children=children,
            tool=self._tool,
            end_index=self._end_index,
            mail=tuple(self._mail),
        )

    def _expect_no_call(self, index: int, what: str) -> None:
        if self._current is not None:
            raise self._does_not_fit(index, f"{what} within a generate")

    def _does_not_fit(self, index: int, how: str) -> TraceError:
        return TraceError(f"Event {index}: thread {path_name(self._path)} {how}.")
