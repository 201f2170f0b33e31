"""Many events as columns: what a file holds of a stretch of a recording as one record, and the events again.

Tokens that are sampled, and those computed on the way, are rows of one table, ticks of another; both tables and the
other events are merged in the order in which they were noted. A number is stored as what it differs by from what it
would be in a thread that goes on: the next position, and a tick as much later as the token was deep.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import msgspec
import numpy as np

from runtime.link.columns import Numbers, from_planes, from_steps, unpacked
from runtime.link.events import AnyEvent, Computed, Count, Sampled, ThreadPath, TickDone

MICROSECONDS = 1_000_000
"""In a second: blocks count them whole."""

_LARGEST = 2**53
_MOST_TOKENS = 2**31


class Block(msgspec.Struct, frozen=True, kw_only=True, tag=True, array_like=True):
    """Events of one stretch of a recording, in columns; see `packed` for how one is stored."""

    events: list[AnyEvent]
    """All that are in neither table."""
    event_tokens: bytes
    """For each of `events`, rows of `tokens` noted since the one before."""
    event_ticks: bytes
    """The same of ticks."""
    threads: list[ThreadPath]
    """Those with tokens, in the order of their first."""
    number: Count
    """Of the first tick."""
    started: Count
    """Microseconds from the recording's beginning to that of the first tick."""
    token_count: Count
    tick_count: Count
    thread: bytes
    """By token: its thread's index in `threads`."""
    position: bytes
    token: bytes
    depth: bytes
    tick: bytes
    """In which it was sampled."""
    fed_back: bytes
    """1 where the token before it was computed alone in that tick, at the same depth."""
    logprob: bytes
    """float32, the first bytes of all before the second ones."""
    tick_tokens: bytes
    """By tick: rows of `tokens` noted since the tick before."""
    end: bytes
    """Microseconds."""
    pause: bytes
    """Microseconds between the end of the tick before it and its beginning."""
    entered: bytes
    """Beyond those that left in the tick before, as threads go on with what they sampled."""
    in_flight: bytes
    left: bytes
    """Beyond the rows of `tokens` that were sampled in the tick."""
    waiting: bytes
    pages_used: bytes


class TickClock:
    """When each tick of a recording ended, which the tokens sampled in it are told by."""

    def __init__(self) -> None:
        self._first = 0
        self._ends = array("q")

    def add(self, first: int, ends: Numbers) -> None:
        """Ticks in a row. Raises `ValueError` unless they follow those that are known."""
        if not len(ends):
            return
        if not self._ends:
            self._first = first
        elif first != self._first + len(self._ends):
            raise ValueError(f"tick {first} follows tick {self._first + len(self._ends) - 1}")
        self._ends.frombytes(ends.astype(np.int64).tobytes())

    def ends_of(self, ticks: Numbers) -> Numbers:
        """Microseconds. Raises `ValueError` for a tick that is not known."""
        if not len(ticks):
            return ticks
        at = ticks - self._first
        if at.min() < 0 or at.max() >= len(self._ends):
            raise ValueError("tokens were sampled in ticks that are not recorded")
        known: Numbers = np.frombuffer(self._ends, np.int64)[at]
        return known


def events_of(block: Block, clock: TickClock) -> Iterator[AnyEvent]:
    """The events in their order. Raises `ValueError` before the first where the columns do not fit together."""
    sampled = from_steps(unpacked(block.tick, block.token_count), unpacked(block.depth, block.token_count)[1:])
    ticks, ends_at = _ticks_of(block, clock, sampled_in(sampled, block.tick_count))
    tokens = _tokens_of(block, clock, sampled + block.number)
    tokens_by_event = _ends(block.event_tokens, len(block.events), len(tokens))
    ticks_by_event = _ends(block.event_ticks, len(block.events), len(ticks))
    return _merged(block.events, tokens, ticks, ends_at, tokens_by_event, ticks_by_event)


Row = tuple[ThreadPath, int, int, int, int, int, float, float]
"""Thread, position, token, depth, tick, whether fed back, log-probability, seconds."""


def _merged(
    events: list[AnyEvent],
    tokens: list[Row],
    ticks: list[TickDone],
    tokens_by_tick: list[int],
    tokens_by_event: list[int],
    ticks_by_event: list[int],
) -> Iterator[AnyEvent]:
    token = tick = 0
    for number in range(len(events) + 1):
        last = number == len(events)
        token_end = len(tokens) if last else tokens_by_event[number]
        tick_end = len(ticks) if last else ticks_by_event[number]
        for done, before in zip(ticks[tick:tick_end], tokens_by_tick[tick:tick_end], strict=True):
            for row in tokens[token:before]:
                yield from _token_events(row)
            token = max(token, before)
            yield done
        tick = tick_end
        for row in tokens[token:token_end]:
            yield from _token_events(row)
        token = max(token, token_end)
        if not last:
            yield events[number]


def _token_events(row: Row) -> Iterator[AnyEvent]:
    thread, position, token, depth, tick, fed_back, logprob, time = row
    if fed_back:
        yield Computed(
            time=time, tick=tick, thread=thread, position=position - 1, count=1, depth=depth, recomputed=False
        )
    yield Sampled(time=time, tick=tick, thread=thread, position=position, token=token, depth=depth, logprob=logprob)


def _tokens_of(block: Block, clock: TickClock, ticks: Numbers) -> list[Row]:
    count = block.token_count
    columns = {
        "thread": unpacked(block.thread, count),
        "position": from_steps(unpacked(block.position, count), 1),
        "token": unpacked(block.token, count),
        "depth": unpacked(block.depth, count),
        "tick": ticks,
        "fed back": unpacked(block.fed_back, count),
    }
    most = {"thread": len(block.threads), "token": _MOST_TOKENS, "fed back": 2}
    for name, numbers in columns.items():
        _check_range(name, numbers, most.get(name, _LARGEST))
    thread, position, token, depth, tick, fed_back = columns.values()
    if (position < fed_back).any():
        raise ValueError("a token was fed back to the beginning of a context")
    logprob = from_planes(block.logprob, "<f4")
    if len(logprob) != count:
        raise ValueError(f"there are {len(logprob)} log-probabilities of {count} tokens")
    time = clock.ends_of(tick) / MICROSECONDS
    return list(
        zip(
            [block.threads[index] for index in thread.tolist()],
            position.tolist(),
            token.tolist(),
            depth.tolist(),
            tick.tolist(),
            fed_back.tolist(),
            logprob.tolist(),
            time.tolist(),
            strict=True,
        )
    )


def _ticks_of(block: Block, clock: TickClock, sampled: Numbers) -> tuple[list[TickDone], list[int]]:
    """The ticks, and for each the rows of tokens before it."""
    count = block.tick_count
    took = unpacked(block.end, count)
    end = np.cumsum(took) + block.started
    names = ("entered", "in_flight", "left", "waiting")
    left = unpacked(block.left, count) + sampled
    columns = {
        "entered": unpacked(block.entered, count) + going_on(left),
        "in_flight": unpacked(block.in_flight, count),
        "left": left,
        "waiting": unpacked(block.waiting, count),
        "end": end,
        "seconds": took - unpacked(block.pause, count),
        "pages_used": from_steps(unpacked(block.pages_used, count)),
    }
    for name, numbers in columns.items():
        _check_range(name, numbers, 10**15 if name in ("end", "seconds") else _LARGEST)
    clock.add(block.number, end)
    rows = zip(*(columns[name].tolist() for name in (*names, "end", "seconds", "pages_used")), strict=True)
    ticks = [
        TickDone(
            time=end / MICROSECONDS,
            tick=number,
            seconds=seconds / MICROSECONDS,
            entered=entered,
            in_flight=in_flight,
            left=left,
            waiting=waiting,
            pages_used=pages_used,
        )
        for number, (entered, in_flight, left, waiting, end, seconds, pages_used) in enumerate(rows, block.number)
    ]
    return ticks, _ends(block.tick_tokens, count, block.token_count)


def going_on(left: Numbers) -> Numbers:
    """By tick, how many left in the one before it."""
    before: Numbers = np.concatenate((np.zeros(min(1, len(left)), np.int64), left[:-1]))
    return before


def sampled_in(ticks: Numbers, count: int) -> Numbers:
    """How many of the tokens sampled in these ticks were in each of the first `count`."""
    among = ticks[(ticks >= 0) & (ticks < count)]
    return np.bincount(among, minlength=count).astype(np.int64)


def _ends(column: bytes, count: int, most: int) -> list[int]:
    """How many rows come before each of `count` places."""
    distances = unpacked(column, count)
    ends = np.cumsum(distances)
    if count and (distances.min() < 0 or ends[-1] > most):
        raise ValueError("rows are out of order")
    found: list[int] = ends.tolist()
    return found


def _check_range(name: str, numbers: Numbers, most: int) -> None:
    if len(numbers) and (numbers.min() < 0 or numbers.max() >= most):
        raise ValueError(f"a {name} is out of range")
