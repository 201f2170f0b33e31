"""Ticks, one after the other, in one native call.

    enter -> [ core iteration -> exit tests -> leave: coda, head, sample -> go on with the next token ] until one stops

A lane whose token leaves goes on with the sampled one by itself, as long as its run allows. The call returns after so
many ticks, or when one in eight lanes has stopped, because then there is something to decide. (On a CPU an idle lane
costs nothing, but asking about every single one does.)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from runtime.backend.native import passes
from runtime.backend.native.clock import nanoseconds
from runtime.backend.native.exits import run_exit_tests
from runtime.backend.native.intrinsics import jit
from runtime.backend.native.number_formats import floats, ints, longs, octets

_PART = 8
"""The part of the lanes in flight that is enough to return for."""


@jit
def advance(buffers: Any, entering: Any, most_ticks: Any, counts: Any) -> None:
    """Ticks over the lanes in `flight`, of which `entering` are new and in `batch`.

    `counts` is set to: ticks, token-iterations, tokens that took part in the last iteration, tokens sampled, lanes
    that stopped (in `stopped`), groups tested in the last tick (in `tested`). Its seventh number is that of the first
    tick. What each tick did is in `tick_end` and beside it.
    """
    began = nanoseconds()
    for i in range(6):
        counts[i] = 0
    batch, fresh, flight = longs(buffers.batch), longs(buffers.fresh), longs(buffers.flight)
    flying = flight[buffers.lanes]
    passes.prelude(buffers, entering)
    # With fewer lanes than that the first stop ends the call: there is latency to lose and little work to share.
    enough = max(1, flying // _PART)
    entered = entering
    while counts[0] < most_ticks and counts[4] < enough:
        tick = counts[0]
        longs(buffers.tick_entered)[tick] = entered
        iterated = _iterate(buffers)
        counts[0] += 1
        counts[1] += iterated
        counts[2] = iterated
        counts[5] = run_exit_tests(buffers)
        leaving, sampled = _leave(buffers)
        counts[3] += sampled
        going_on, stopped = _go_on(buffers, leaving, counts[4], counts[0], counts[6] + tick)
        counts[4] += stopped
        longs(buffers.tick_in_flight)[tick] = iterated
        longs(buffers.tick_left)[tick] = leaving
        longs(buffers.tick_end)[tick] = nanoseconds() - began
        entered = going_on
        for i in range(going_on):
            batch[i] = fresh[i]
        passes.prelude(buffers, going_on)


@jit
def _iterate(buffers: Any) -> Any:
    """One iteration of all in flight that have not come to their bound; how many those are."""
    flight, batch, age, bound = longs(buffers.flight), longs(buffers.batch), ints(buffers.age), ints(buffers.bound)
    n, flying = 0, flight[buffers.lanes]
    for i in range(flying):
        if age[flight[i]] < bound[flight[i]]:
            batch[n] = flight[i]
            n += 1
    passes.iterate(buffers, n)
    if buffers.has_exit_gate != 0:
        passes.judge(buffers, n, 1)
    for i in range(flying):
        age[flight[i]] += 1
    return n


@jit
def _leave(buffers: Any) -> Any:
    """Settles what is done, then coda, head and sampling of those that leave, which become the batch.

    How many leave, and how many tokens were sampled.
    """
    flight, batch, chosen = longs(buffers.flight), longs(buffers.batch), longs(buffers.chosen)
    age, bound, until, wanted = ints(buffers.age), ints(buffers.bound), ints(buffers.until), octets(buffers.wanted)
    n, flying = 0, flight[buffers.lanes]
    for i in range(flying):
        lane = flight[i]
        if age[lane] == bound[lane] or age[lane] >= until[lane]:
            batch[n] = lane
            n += 1
    passes.settle(buffers, n)
    leaving = 0
    for i in range(n):
        if age[batch[i]] >= until[batch[i]]:
            batch[leaving] = batch[i]
            leaving += 1
    m = 0
    for i in range(leaving):
        if wanted[batch[i]] != 0:
            chosen[m] = i
            m += 1
    if m > 0 or buffers.coda_layers > 0:
        passes.coda(buffers, leaving)
    passes.head(buffers, m)
    passes.sample(buffers, m)
    return leaving, m


@jit
def _go_on(buffers: Any, leaving: Any, before: Any, tick: Any, number: Any) -> Any:
    """Notes what was sampled in a tick, the call's `tick`-th and the caller's `number`, and lets each leaving lane go
    on or stop.

    How many go on (in `fresh`), and how many stopped (in `stopped`, behind those that had `before`).
    """
    batch, fresh, stopped = longs(buffers.batch), longs(buffers.fresh), longs(buffers.stopped)
    wanted, occupied, halting = octets(buffers.wanted), octets(buffers.occupied), octets(buffers.halting)
    age, bound, run = ints(buffers.age), ints(buffers.bound), ints(buffers.run)
    halts, count = ints(buffers.halts), ints(buffers.run_count)
    going_on, stopping, sampled = 0, 0, 0
    for i in range(leaving):
        lane = batch[i]
        token = -1
        if wanted[lane] != 0:
            token = ints(buffers.drawn_token)[sampled]
            at = lane * buffers.longest_run + count[lane]
            ints(buffers.run_token)[at] = token
            floats(buffers.run_logprob)[at] = floats(buffers.drawn_logprob)[sampled]
            ints(buffers.run_depth)[at] = min(age[lane], bound[lane])
            longs(buffers.run_tick)[at] = number
            count[lane] += 1
            sampled += 1
        if token >= 0 and run[lane] > 0 and halting[halts[lane] * buffers.vocab + token] == 0:
            _enter_next(buffers, lane, token)
            fresh[going_on] = lane
            going_on += 1
        else:
            stopped[before + stopping] = lane
            longs(buffers.stopped_at)[before + stopping] = tick
            occupied[lane] = 0
            stopping += 1
    if stopping > 0:
        _compact(buffers)
    return going_on, stopping


@jit
def _compact(buffers: Any) -> None:
    """Takes lanes that stopped out of `flight`."""
    flight, occupied = longs(buffers.flight), octets(buffers.occupied)
    kept = 0
    for i in range(flight[buffers.lanes]):
        if occupied[flight[i]] != 0:
            flight[kept] = flight[i]
            kept += 1
    flight[buffers.lanes] = kept


@jit
def _enter_next(buffers: Any, lane: Any, token: Any) -> None:
    """A lane's next token takes the place of the one that left."""
    place = ints(buffers.place)[lane] + 1
    page = ints(buffers.page_table)[ints(buffers.row)[lane] * buffers.pages_per_row + place // buffers.page_size]
    ints(buffers.run)[lane] -= 1
    longs(buffers.token)[lane] = token
    ints(buffers.position)[lane] += 1
    ints(buffers.place)[lane] = place
    longs(buffers.cell)[lane] = np.int64(page) * buffers.page_size + place % buffers.page_size
    ints(buffers.age)[lane] = 0
    ints(buffers.until)[lane] = ints(buffers.bound)[lane]
    floats(buffers.exit_probability)[lane] = np.float32(0.0)
    floats(buffers.going_on)[lane] = np.float32(1.0)
    state, remembered = floats(buffers.state), floats(buffers.remembered)
    for d in range(lane * buffers.width, (lane + 1) * buffers.width):
        state[d] = np.float32(0.0)
        remembered[d] = np.float32(0.0)
