"""What each call of a recorded device did, and how long it took: what costs are fitted to."""

from __future__ import annotations

from array import array
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.link import (
    AnyEvent,
    Computed,
    GenerateFinished,
    GenerateStarted,
    Sampled,
    ThreadFailed,
    ThreadPath,
    TickDone,
)

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]

_BETWEEN = 1.5e-6
"""Seconds between two ticks from which on they are of two calls: within one call the next tick begins when the one
before it ends, but for rounding."""


class CallTimes(NamedTuple):
    """Ticks [ticks], and the calls [calls] that they are parts of."""

    in_flight: Floats
    entered: Floats
    left: Floats
    keys: Floats
    """By tick, as in `runtime.TickWork`."""
    first: Numbers
    """By call, its first tick."""
    seconds: Floats
    """By tick, of the backend; what a call takes besides its ticks is in its last one."""
    pause: Floats
    """By call, what passed before it since the call before; NaN where nobody had anything to do meanwhile."""
    stopped: Floats
    """By call, tokens that left in the call before it and whose lanes did not go on."""
    entering: Floats
    """By call, tokens that entered with it."""
    commands: Floats
    """By call, events of threads since the call before."""
    hop: float
    """Seconds from the end of a thread's last work to a program's next command, where nothing else was to do; NaN where
    there was no such case."""


class CallTimesWriter:
    """Takes a trace's events in their order."""

    def __init__(self) -> None:
        self._ends, self._seconds = array("d"), array("d")
        self._entered, self._in_flight = array("q"), array("q")
        self._commands = array("q")
        """By tick, commands before it since the tick before."""
        self._idle = array("b")
        """By tick, whether nobody generated when it was over."""
        self._computed = array("q")
        """Of tokens computed together: the tick that they left in, depth, how many, and their keys."""
        self._first = 0
        self._since = 0
        self._generating = set[ThreadPath]()

    def take(self, event: AnyEvent) -> None:
        match event:
            case Sampled():
                pass
            case Computed():
                keys = event.count * event.position + event.count * (event.count + 1) // 2
                self._computed.extend((event.tick, event.depth, event.count, keys))
            case TickDone():
                if not self._ends:
                    self._first = event.tick
                self._ends.append(event.time)
                self._seconds.append(event.seconds)
                self._entered.append(event.entered)
                self._in_flight.append(event.in_flight)
                self._commands.append(self._since)
                self._idle.append(not self._generating)
                self._since = 0
            case _:
                self._since += 1
                if isinstance(event, GenerateStarted):
                    self._generating.add(event.thread)
                elif isinstance(event, GenerateFinished | ThreadFailed):
                    self._generating.discard(event.thread)

    def finished(self) -> CallTimes:
        ends, seconds = np.array(self._ends), np.array(self._seconds)
        count = len(ends)
        in_flight, entering = np.array(self._in_flight, float), np.array(self._entered, float)
        begins = ends - seconds
        pauses = np.zeros(count)
        pauses[1:] = np.maximum(0.0, begins[1:] - ends[:-1])
        first = np.flatnonzero((pauses > _BETWEEN) | (np.arange(count) == 0))
        idle = np.zeros(count, bool)
        idle[1:] = np.array(self._idle, bool)[:-1]
        commands = np.array(self._commands, float)
        last = np.append(first[1:], count) - 1
        # Who is no longer in flight, though nobody took its place.
        stopped = in_flight[last[:-1]] + entering[first[1:]] - in_flight[first[1:]]
        entered, left, keys = self._computed_in(count)
        waits = pauses[first][idle[first]]
        pause = np.where(idle[first], np.nan, pauses[first])
        pause[:1] = np.nan
        return CallTimes(
            in_flight=in_flight,
            entered=entered,
            left=left,
            keys=keys,
            first=first,
            seconds=seconds,
            pause=pause,
            stopped=np.concatenate((np.zeros(min(1, len(first))), np.maximum(0.0, stopped))),
            entering=entering[first],
            commands=commands[first],
            hop=float(np.median(waits)) if len(waits) else float("nan"),
        )

    def _computed_in(self, ticks: int) -> tuple[Floats, Floats, Floats]:
        """By tick, tokens that entered and that left, and keys: a token that left in one took part in as many up to it
        as it is deep. (What ticks say of themselves does not count lanes that go on from one call to the next.)"""
        tick, depth, count, keys = np.array(self._computed, np.int64).reshape(-1, 4).T
        begin = np.clip(tick - depth + 1 - self._first, 0, ticks)
        end = np.clip(tick + 1 - self._first, 0, ticks)
        entered, left = _sums(begin, count, ticks + 1), _sums(end, count, ticks + 1)
        read = np.cumsum(_sums(begin, keys, ticks + 1) - _sums(end, keys, ticks + 1))
        return entered[:ticks], left[1:], read[:ticks]


def _sums(at: Numbers, values: Numbers, count: int) -> Floats:
    """Of the values at each place."""
    return np.bincount(at, values, count).astype(np.float64)
