"""A backend that computes nothing: what threads say, and how deep, is known before, and a clock of its own goes on by
what its calls would take.

    Tick -> when each lane will have stopped -> as many ticks as the native backend would do -> TickResult

It calls ticks off as the native one does (an eighth of the lanes has stopped, or as many ticks as allowed are done), so
that a scheduler over it decides what it would have decided. No tick is gone through by itself: where a lane's tokens
leave is known when it enters, so what each tick has to do is added up ahead of time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from policies import DepthPolicy, EntropySwitch, Speculative
from runtime.backend.interface import CacheShape, Entering, Float32, Int32, Int64, RowHoles, Run, Tick, TickResult
from runtime.backend.work_ahead import TickWork, WorkAhead

if TYPE_CHECKING:
    from torch import Tensor

ENOUGH = 8
"""The part of the lanes in flight that is enough to end a call, as in native code."""
_NEVER = np.iinfo(np.int64).max


class Said(NamedTuple):
    """What one generate says."""

    tokens: Int32
    """[n] in order."""
    depths: Int32
    """[n] iterations that made the logits of each."""
    received: tuple[tuple[int, int], ...] = ()
    """Positions up to which, and iterations with which, received tokens before it are computed, ascending; what the
    last one does not reach is as deep as the first token said."""


class CallWork(NamedTuple):
    """What a call of the backend did."""

    ticks: TickWork
    """By tick."""
    entering: int
    """Tokens that entered with it; others followed in its ticks, where lanes went on by themselves."""
    stopped: int
    """Tokens that left and whose lanes did not go on: their threads are asked about."""


class VirtualClock:
    """Seconds that pass when somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += max(0.0, seconds)


@dataclass(slots=True)
class _Voice:
    """What a thread says in its present generate, and how much of it it has said."""

    said: Said
    next: int = 0

    def depth_at(self, position: int) -> int:
        """Of a received token."""
        for end, depth in self.said.received:
            if position < end:
                return depth
        depths = self.said.depths
        return int(depths[0]) if len(depths) else 1


@dataclass(slots=True)
class _Flight:
    """Tokens that entered together, and what their lane goes on with."""

    lanes: list[int]
    bounds: list[int]
    positions: list[int]
    entered: int
    """In which tick."""
    ends: Int64
    """[tokens] the ticks before which each has left, one after the other: those that entered, together, then each that
    the lane went on with."""
    voice: _Voice | None
    """None where no token is sampled."""
    targets: list[int]
    """By lane, the token to be scored; -1 for none."""

    def sampled_before(self, tick: int) -> int:
        return 0 if self.voice is None else int(np.searchsorted(self.ends, tick, "right"))


class VirtualBackend:
    """A `Backend` for what was recorded. Tokens that are tested exit where they did then, or at their bound if that is
    lower; others at their bound. Drafts are refused: what would have been thrown away was not recorded."""

    def __init__(self, cache: CacheShape, clock: VirtualClock, seconds_of: Callable[[CallWork], float]) -> None:
        """`seconds_of` says what a call takes, by which the clock is put forward."""
        self._cache = cache
        self._clock = clock
        self._seconds_of = seconds_of
        self._table: Int32 = np.zeros((cache.rows, cache.pages_per_row), np.int32)
        self._holes = RowHoles.none_in(cache)
        self._policies: list[DepthPolicy] = []
        self._voices: dict[int, _Voice] = {}
        self._by_last_lane: dict[int, _Flight] = {}
        self._stops: Int64 = np.full(cache.lanes, _NEVER, np.int64)
        """By lane: the tick before which it has stopped."""
        self._ahead = WorkAhead()
        self._tick = 0
        self.last = CallWork(self._ahead.take(0), 0, 0)
        """What the last call did."""

    # ---- what a scheduler asks --------------------------------------------------------------------------------------

    @property
    def cache(self) -> CacheShape:
        return self._cache

    @property
    def page_table(self) -> Int32:
        return self._table

    @property
    def row_holes(self) -> RowHoles:
        return self._holes

    def register(self, policy: DepthPolicy) -> int:
        if isinstance(policy.innermost, Speculative | EntropySwitch):
            raise ValueError("drafts, and two models in turns, cannot be simulated; name another depth policy")
        for index, known in enumerate(self._policies):
            if known is policy or (type(known) is type(policy) and known == policy):
                return index
        self._policies.append(policy)
        return len(self._policies) - 1

    def release(self, index: int) -> None:
        """Policies are few, and kept."""

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        raise ValueError("a virtual backend has no weights")

    def close(self) -> None:
        """Nothing runs."""

    def latents(self, lanes: list[int]) -> Tensor:
        raise ValueError("a virtual backend has no latent states")

    def run_of(self, lane: int) -> Run | None:
        flight = self._by_last_lane.get(lane)
        count = 0 if flight is None else flight.sampled_before(self._tick)
        return None if flight is None or not count else _run(flight, count)

    # ---- what threads say -------------------------------------------------------------------------------------------

    def say(self, key: int, said: Said) -> None:
        """What the thread of a sampling key says in the generate that begins now."""
        self._voices[key] = _Voice(said)

    def forget(self, key: int) -> None:
        self._voices.pop(key, None)

    # ---- a call -----------------------------------------------------------------------------------------------------

    def tick(self, tick: Tick) -> TickResult:
        now = tick.number
        self._ahead.go_to(now)
        for lane in tick.dropped.tolist():
            self._drop(lane, now)
        self._enter(tick)
        flying = int((self._stops != _NEVER).sum())
        end = now + 1
        if flying:
            stops = np.sort(self._stops)[:flying]
            end = min(int(stops[max(1, flying // ENOUGH) - 1]), now + tick.most_ticks)
        work = self._ahead.take(end - now)
        self._tick = end
        stopped = np.flatnonzero(self._stops <= end).tolist()
        leaving = [self._by_last_lane.pop(lane) for lane in stopped if lane in self._by_last_lane]
        result = self._leave(leaving, now, end, work)
        self.last = CallWork(work, len(tick.entering.lane), len(stopped))
        self._clock.advance(self._seconds_of(self.last))
        return result

    def _drop(self, lane: int, now: int) -> None:
        flight = self._by_last_lane.pop(lane, None)
        if flight is None:
            # A lane of a flight that is named by another, or one that never entered.
            return
        if flight.voice is not None:
            flight.voice.next += flight.sampled_before(now)
        self._stops[flight.lanes] = _NEVER
        self._plan(flight, now, -1)

    def _enter(self, tick: Tick) -> None:
        """Takes in what enters."""
        entering, now = tick.entering, tick.number
        last = np.flatnonzero(entering.lane == entering.group)
        start = 0
        for row in last.tolist():
            flight = self._flight(entering, tick, start, row + 1, now)
            self._by_last_lane[flight.lanes[-1]] = flight
            self._stops[flight.lanes] = flight.ends[-1]
            self._plan(flight, now, 1)
            start = row + 1

    def _flight(self, entering: Entering, tick: Tick, start: int, end: int, now: int) -> _Flight:
        row = end - 1
        voice = self._voices[int(entering.sampling_key[row])]
        bounds: list[int] = entering.bound[start:end].tolist()
        targets = [-1] * (end - start) if entering.target is None else entering.target[start:end].tolist()
        positions: list[int] = entering.position[start:end].tolist()
        samples = bool(entering.sample[row] >= 0) and targets[-1] < 0
        until, tests = int(entering.until[row]), bool(entering.tests[row])
        if samples:
            halts = tick.halting[int(entering.halts[row])] if entering.run[row] else frozenset[int]()
            depths = _depths_of_run(voice, int(entering.run[row]), halts)
        else:
            depths = np.array([voice.depth_at(positions[-1])], np.int64)
        depths = np.clip(depths, 1, until) if tests else np.full(len(depths), until, np.int64)
        return _Flight(
            entering.lane[start:end].tolist(),
            bounds,
            positions,
            now,
            now + np.cumsum(depths),
            voice if samples else None,
            targets,
        )

    def _plan(self, flight: _Flight, start: int, sign: int) -> None:
        """Adds, or takes away, what a flight's ticks from `start` on do."""
        ends = flight.ends[np.searchsorted(flight.ends, start, "right") :]
        if len(ends) == 0:
            return
        gone = len(flight.ends) - len(ends)
        ahead, stop = self._ahead, int(ends[-1])
        ahead.reserve(stop)
        if start == flight.entered:
            ahead.enters(start, sign * len(flight.lanes))
        if len(flight.lanes) == 1:
            ahead.computes(start, stop, sign, sign * (flight.positions[0] + 1 + gone))
            ahead.goes_on(ends, sign)
            return
        for position, bound in zip(flight.positions, flight.bounds, strict=True):
            rests = min(flight.entered + bound, stop)
            if rests > start:
                ahead.computes(start, rests, sign, sign * (position + 1))
        ahead.leaves(stop, sign * len(flight.lanes))

    def _leave(self, flights: list[_Flight], now: int, end: int, work: TickWork) -> TickResult:
        lane, depth, token, left_at = list[int](), list[int](), list[int](), list[int]()
        runs: dict[int, Run] = {}
        for flight in flights:
            self._stops[flight.lanes] = _NEVER
            count = len(flight.lanes)
            deep = int(flight.ends[0]) - flight.entered
            lane += flight.lanes
            depth += [min(deep, bound) for bound in flight.bounds]
            token += flight.targets
            left_at += [int(flight.ends[-1]) - now] * count
            if flight.voice is not None:
                said = len(flight.ends)
                if said > 1:
                    runs[flight.lanes[-1]] = _run(flight, said)
                    depth[-1] = int(flight.ends[-1] - flight.ends[-2])
                flight.voice.next += said
                token[-1] = int(flight.voice.said.tokens[flight.voice.next - 1])
        rows = len(lane)
        return TickResult(
            lane=np.array(lane, np.int32),
            depth=np.array(depth, np.int32),
            token=np.array(token, np.int32),
            logprob=np.zeros(rows, np.float32),
            entropy=np.zeros(rows, np.float32),
            top=({},) * rows,
            tested=np.empty(0, np.int32),
            exit_value=np.empty(0, np.float32),
            failures={},
            in_flight=int(work.in_flight[-1]),
            iterations=int(work.in_flight.sum()),
            runs=runs,
            ticks=end - now,
            left_at=left_at,
        )


def _depths_of_run(voice: _Voice, most: int, halts: frozenset[int]) -> Int64:
    """Depths of the tokens that a lane says before it stops: one, `most` more, or fewer where it halts."""
    first = voice.next
    tokens = voice.said.tokens[first : first + most + 1].tolist()
    if not tokens:
        raise ValueError("a thread is asked for more than was said")
    count = next((index + 1 for index, token in enumerate(tokens) if token in halts), len(tokens))
    return voice.said.depths[first : first + count].astype(np.int64)


def _run(flight: _Flight, count: int) -> Run:
    """The first `count` tokens that a flight's lane says."""
    assert flight.voice is not None
    voice, ends = flight.voice, flight.ends[:count]
    depth: Int32 = np.diff(ends, prepend=flight.entered).astype(np.int32)
    logprob: Float32 = np.zeros(count, np.float32)
    return Run(voice.said.tokens[voice.next : voice.next + count], depth, logprob, ends - 1)
