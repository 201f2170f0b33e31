"""What a device notes of its ticks until it is written, as it comes; `block` makes columns of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from runtime.link.blocks import Block, going_on, sampled_in
from runtime.link.columns import Numbers, packed, planes, steps
from runtime.link.events import AnyEvent, Computed, Event, Received, ThreadPath

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]


class TickNotes(NamedTuple):
    """What `TickDone` says, of ticks in a row; arrays [ticks]."""

    end: Numbers
    """Microseconds since the recording began."""
    took: Numbers
    """Microseconds."""
    entered: Numbers
    in_flight: Numbers
    left: Numbers
    waiting: Numbers
    pages_used: Numbers


class _Run(NamedTuple):
    """Tokens that a thread has sampled one after the other."""

    thread: int
    """Its index."""
    position: int
    is_fed_back: bool
    """Whether the token before the first was computed alone, with it."""
    tokens: Int32 | Sequence[int]
    depths: Int32 | Sequence[int]
    logprobs: Float32 | Sequence[float]
    ticks: Numbers | Sequence[int]


class SampledRun(NamedTuple):
    """The same, of a thread that is named by its path."""

    thread: ThreadPath
    position: int
    is_fed_back: bool
    tokens: Int32 | Sequence[int]
    depths: Int32 | Sequence[int]
    logprobs: Float32 | Sequence[float]
    ticks: Numbers | Sequence[int]


class TickRun(NamedTuple):
    """Ticks in a row, the first of them with this number."""

    number: int
    ticks: TickNotes


class _Rows(NamedTuple):
    """The table of tokens."""

    thread: Numbers
    position: Numbers
    token: Numbers
    depth: Numbers
    tick: Numbers
    fed_back: Numbers
    logprob: Float32


class Notes:
    """What is noted until it is written; appended to by one thread, and then handed to another."""

    def __init__(self) -> None:
        self.size = 0
        """Rows, events and the tokens in these: to see when there is much."""
        self.events: list[Event] = []
        self._event_tokens: list[int] = []
        self._event_ticks: list[int] = []
        self._threads: dict[ThreadPath, int] = {}
        self._runs: list[_Run] = []
        self._token_count = 0
        self._number = 0
        self._ticks: list[TickNotes] = []
        self._tick_count = 0
        self._tick_tokens: list[tuple[int, int]] = []
        """For each of `_ticks`, how many ticks and how many tokens before them."""
        self._computed: Computed | None = None
        """The last event, if it may become part of the token that follows."""

    def add(self, event: Event) -> None:
        """Any event, as it is."""
        self._settle()
        self._add(event)

    def add_computed(self, event: Computed) -> None:
        """Tokens that left the device; where one was fed back and another sampled from it, that is one row."""
        self._settle()
        if event.count == 1 and not event.recomputed and not event.received:
            self._computed = event
            self.size += 1
        else:
            self._add(event)

    def add_tokens(
        self,
        thread: ThreadPath,
        position: int,
        tokens: Int32 | Sequence[int],
        depths: Int32 | Sequence[int],
        logprobs: Float32 | Sequence[float],
        ticks: Numbers | Sequence[int],
    ) -> None:
        """Tokens that a thread has sampled from `position` on, each fed back in the tick in which the next was sampled.

        Whether the one before the first was, says a `Computed` noted just before. Ticks are noted after the tokens that
        were sampled in them.
        """
        before = self._computed
        joins = (
            before is not None
            and before.thread == thread
            and before.position == position - 1
            and before.depth == depths[0]
            and before.tick == ticks[0]
        )
        if joins:
            self._computed = None
            self.size -= 1
        else:
            self._settle()
        index = self._threads.setdefault(thread, len(self._threads))
        self._runs.append(_Run(index, position, joins, tokens, depths, logprobs, ticks))
        self._token_count += len(tokens)
        self.size += len(tokens)

    def add_ticks(self, number: int, ticks: TickNotes) -> None:
        """Ticks that were done, the first of them with this number; they follow those noted before."""
        self._settle()
        if not self._ticks:
            self._number = number
        self._tick_tokens.append((len(ticks.end), self._token_count))
        self._ticks.append(ticks)
        self._tick_count += len(ticks.end)
        self.size += len(ticks.end)

    def extend(self, later: Notes) -> None:
        """Appends what was noted after this."""
        self._settle()
        later._settle()
        tokens, ticks = self._token_count, self._tick_count
        self.events += later.events
        self._event_tokens += [tokens + count for count in later._event_tokens]
        self._event_ticks += [ticks + count for count in later._event_ticks]
        index = [self._threads.setdefault(path, len(self._threads)) for path in later._threads]
        self._runs += [run._replace(thread=index[run.thread]) for run in later._runs]
        self._token_count += later._token_count
        if not self._ticks:
            self._number = later._number
        self._ticks += later._ticks
        self._tick_count += later._tick_count
        self._tick_tokens += [(count, tokens + before) for count, before in later._tick_tokens]
        self.size += later.size

    def parts(self) -> Iterator[Event | SampledRun | TickRun]:
        """Everything in the order in which it was noted."""
        self._settle()
        paths = list(self._threads)
        ticks = 0
        run = tick = tokens = 0
        for number in range(len(self.events) + 1):
            last = number == len(self.events)
            token_end = self._token_count if last else self._event_tokens[number]
            tick_end = self._tick_count if last else self._event_ticks[number]
            while ticks < tick_end:
                count, before = self._tick_tokens[tick]
                while tokens < before:
                    yield self._sampled(paths, run)
                    tokens += len(self._runs[run].tokens)
                    run += 1
                yield TickRun(self._number + ticks, self._ticks[tick])
                ticks += count
                tick += 1
            while tokens < token_end:
                yield self._sampled(paths, run)
                tokens += len(self._runs[run].tokens)
                run += 1
            if not last:
                yield self.events[number]

    def _sampled(self, paths: list[ThreadPath], number: int) -> SampledRun:
        run = self._runs[number]
        return SampledRun(paths[run.thread], *run[1:])

    def block(self, events: int | None = None) -> Block:
        """As columns; of so many `events` and what precedes the next one, if not of all."""
        self._settle()
        token_count, tick_count = self._token_count, self._tick_count
        if events is not None and events < len(self.events):
            token_count, tick_count = self._event_tokens[events], self._event_ticks[events]
        rows = self._rows(token_count)
        ticks = TickNotes(*(column[:tick_count] for column in self._columns()))
        tokens_by_tick = _repeated([count for _, count in self._tick_tokens], [count for count, _ in self._tick_tokens])
        started = max(0, int(ticks.end[0] - ticks.took[0])) if tick_count else 0
        took = steps(ticks.end)
        took[:1] -= started
        since = rows.tick - self._number
        event_tokens, event_ticks = packed(
            steps(_numbers(self._event_tokens[:events])), steps(_numbers(self._event_ticks[:events]))
        )
        thread, position, token, depth, tick, fed_back = packed(
            rows.thread,
            steps(rows.position, 1),
            rows.token,
            rows.depth,
            steps(since, rows.depth[1:]),
            rows.fed_back,
        )
        tick_tokens, end, pause, entered, in_flight, left, waiting, pages_used = packed(
            steps(tokens_by_tick[:tick_count]),
            took,
            took - ticks.took,
            ticks.entered - going_on(ticks.left),
            ticks.in_flight,
            ticks.left - sampled_in(since, tick_count),
            ticks.waiting,
            steps(ticks.pages_used),
        )
        return Block(
            events=cast(list[AnyEvent], self.events[:events]),
            event_tokens=event_tokens,
            event_ticks=event_ticks,
            threads=list(self._threads),
            number=self._number,
            started=started,
            token_count=token_count,
            tick_count=tick_count,
            thread=thread,
            position=position,
            token=token,
            depth=depth,
            tick=tick,
            fed_back=fed_back,
            logprob=planes(rows.logprob),
            tick_tokens=tick_tokens,
            end=end,
            pause=pause,
            entered=entered,
            in_flight=in_flight,
            left=left,
            waiting=waiting,
            pages_used=pages_used,
        )

    def _rows(self, count: int) -> _Rows:
        """The first rows of the table of tokens."""
        if not count:
            none = _numbers([])
            return _Rows(none, none, none, none, none, none, none.astype(np.float32))
        threads, positions, are_fed_back, tokens, depths, logprobs, ticks = zip(*self._runs, strict=True)
        counts = [len(run) for run in tokens]
        begin = np.cumsum(counts) - counts
        fed_back = np.ones(self._token_count, np.int64)
        fed_back[begin] = are_fed_back
        return _Rows(
            _repeated(threads, counts)[:count],
            (_repeated(positions - begin, counts) + np.arange(self._token_count))[:count],
            np.concatenate(tokens)[:count].astype(np.int64),
            np.concatenate(depths)[:count].astype(np.int64),
            np.concatenate(ticks)[:count].astype(np.int64),
            fed_back[:count],
            np.concatenate(logprobs)[:count].astype(np.float32),
        )

    def _columns(self) -> TickNotes:
        """The table of ticks."""
        if not self._ticks:
            return TickNotes(*[_numbers([])] * len(TickNotes._fields))
        return TickNotes(*map(np.concatenate, zip(*self._ticks, strict=True)))

    def _add(self, event: Event) -> None:
        self.size += 1 + (len(event.tokens) if isinstance(event, Received) else 0)
        self.events.append(event)
        self._event_tokens.append(self._token_count)
        self._event_ticks.append(self._tick_count)

    def _settle(self) -> None:
        if self._computed is not None:
            event, self._computed = self._computed, None
            self.size -= 1
            self._add(event)


def _numbers(values: Sequence[int]) -> Numbers:
    return np.array(values, np.int64)


def _repeated(values: Sequence[int] | Numbers, counts: Sequence[int]) -> Numbers:
    return np.repeat(np.array(values, np.int64), counts)
