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
from runtime.backend.native.intrinsics import compiled
from runtime.backend.native.number_formats import floats, ints, longs, octets

_PART = 8
"""The part of the lanes in flight that is enough to return for."""


@compiled
def advance(c: Any, entering: Any, most_ticks: Any, counts: Any) -> None:
    """Ticks over the lanes in `flight`, of which `entering` are new and in `batch`.

    `counts` is set to: ticks, token-iterations, tokens that took part in the last iteration, tokens sampled, lanes
    that stopped (in `stopped`), groups tested in the last tick (in `tested`).
    """
    for i in range(6):
        counts[i] = 0
    batch, fresh, flight = longs(c.batch), longs(c.fresh), longs(c.flight)
    flying = flight[c.lanes]
    passes.prelude(c, entering)
    # With fewer lanes than that the first stop ends the call: there is latency to lose and little work to share.
    enough = max(1, flying // _PART)
    while counts[0] < most_ticks and counts[4] < enough:
        iterated = _iterate(c)
        counts[0] += 1
        counts[1] += iterated
        counts[2] = iterated
        counts[5] = _test(c)
        leaving, sampled = _leave(c)
        counts[3] += sampled
        going_on, stopped = _go_on(c, leaving, counts[4], counts[0])
        counts[4] += stopped
        for i in range(going_on):
            batch[i] = fresh[i]
        passes.prelude(c, going_on)


@compiled
def _iterate(c: Any) -> Any:
    """One iteration of all in flight that have not come to their bound; how many those are."""
    flight, batch, age, bound = longs(c.flight), longs(c.batch), ints(c.age), ints(c.bound)
    n, flying = 0, flight[c.lanes]
    for i in range(flying):
        if age[flight[i]] < bound[flight[i]]:
            batch[n] = flight[i]
            n += 1
    passes.iterate(c, n)
    for i in range(flying):
        age[flight[i]] += 1
    return n


@compiled
def _is_due(c: Any, lane: Any) -> Any:
    """Whether a lane that iterated has its exit tested here."""
    age = ints(c.age)[lane]
    check = age - ints(c.minimum)[lane] - 1
    is_tested = octets(c.tests)[lane] != 0 and ints(c.criterion)[lane] > 0 and age <= ints(c.bound)[lane]
    return is_tested and check >= 0 and check % ints(c.every)[lane] == 0


@compiled
def _test(c: Any) -> Any:
    """Exit tests by native criteria; a group that exits is told to leave now. How many groups were tested."""
    flight, batch, group, tested = longs(c.flight), longs(c.batch), ints(c.group), longs(c.tested)
    total, count, value = floats(c.exit_sum), longs(c.exit_count), floats(c.exit_value)
    n, flying = 0, flight[c.lanes]
    for i in range(flying):
        lane = flight[i]
        total[lane] = np.float32(0.0)
        count[lane] = 0
        if _is_due(c, lane):
            batch[n] = lane
            n += 1
    passes.measure(c, n)
    for i in range(n):
        total[group[batch[i]]] += value[batch[i]]
        count[group[batch[i]]] += 1
    groups = 0
    for i in range(flying):
        lane = flight[i]
        if count[lane] > 0:
            total[lane] /= np.float32(count[lane])
            tested[groups] = lane
            groups += 1
    threshold, until, age = floats(c.threshold), ints(c.until), ints(c.age)
    for i in range(flying):
        lane = flight[i]
        last = group[lane]
        if count[last] > 0 and total[last] < threshold[last]:
            until[lane] = age[lane]
    return groups


@compiled
def _leave(c: Any) -> Any:
    """Settles what is done, then coda, head and sampling of those that leave, which become the batch.

    How many leave, and how many tokens were sampled.
    """
    flight, batch, chosen = longs(c.flight), longs(c.batch), longs(c.chosen)
    age, bound, until, wanted = ints(c.age), ints(c.bound), ints(c.until), octets(c.wanted)
    n, flying = 0, flight[c.lanes]
    for i in range(flying):
        lane = flight[i]
        if age[lane] == bound[lane] or age[lane] >= until[lane]:
            batch[n] = lane
            n += 1
    passes.settle(c, n)
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
    if m > 0 or c.coda_layers > 0:
        passes.coda(c, leaving)
    passes.head(c, m)
    passes.sample(c, m)
    return leaving, m


@compiled
def _go_on(c: Any, leaving: Any, before: Any, tick: Any) -> Any:
    """Notes what was sampled, and lets each leaving lane go on or stop.

    How many go on (in `fresh`), and how many stopped (in `stopped`, behind those that had `before`).
    """
    batch, fresh, stopped = longs(c.batch), longs(c.fresh), longs(c.stopped)
    wanted, occupied, halting = octets(c.wanted), octets(c.occupied), octets(c.halting)
    age, bound, run, halts, count = ints(c.age), ints(c.bound), ints(c.run), ints(c.halts), ints(c.run_count)
    going_on, stopping, sampled = 0, 0, 0
    for i in range(leaving):
        lane = batch[i]
        token = -1
        if wanted[lane] != 0:
            token = ints(c.drawn_token)[sampled]
            at = lane * c.longest_run + count[lane]
            ints(c.run_token)[at] = token
            floats(c.run_logprob)[at] = floats(c.drawn_logprob)[sampled]
            ints(c.run_depth)[at] = min(age[lane], bound[lane])
            count[lane] += 1
            sampled += 1
        if token >= 0 and run[lane] > 0 and halting[halts[lane] * c.vocab + token] == 0:
            _enter_next(c, lane, token)
            fresh[going_on] = lane
            going_on += 1
        else:
            stopped[before + stopping] = lane
            longs(c.stopped_at)[before + stopping] = tick
            occupied[lane] = 0
            stopping += 1
    if stopping > 0:
        _compact(c)
    return going_on, stopping


@compiled
def _compact(c: Any) -> None:
    """Takes lanes that stopped out of `flight`."""
    flight, occupied = longs(c.flight), octets(c.occupied)
    kept = 0
    for i in range(flight[c.lanes]):
        if occupied[flight[i]] != 0:
            flight[kept] = flight[i]
            kept += 1
    flight[c.lanes] = kept


@compiled
def _enter_next(c: Any, lane: Any, token: Any) -> None:
    """A lane's next token takes the place of the one that left."""
    position = ints(c.position)[lane] + 1
    page = ints(c.page_table)[ints(c.row)[lane] * c.pages_per_row + position // c.page_size]
    ints(c.run)[lane] -= 1
    longs(c.token)[lane] = token
    ints(c.position)[lane] = position
    longs(c.cell)[lane] = np.int64(page) * c.page_size + position % c.page_size
    ints(c.age)[lane] = 0
    ints(c.until)[lane] = ints(c.bound)[lane]
    state, remembered = floats(c.state), floats(c.remembered)
    for d in range(lane * c.width, (lane + 1) * c.width):
        state[d] = np.float32(0.0)
        remembered[d] = np.float32(0.0)
