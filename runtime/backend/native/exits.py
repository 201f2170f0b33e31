"""Exit tests in native code, as `runtime.backend.exits` has them: when one is due is the same function, compiled."""

from __future__ import annotations

from typing import Any

import numpy as np

from policies import exit_rule
from runtime.backend.native import passes
from runtime.backend.native.criteria import GATE
from runtime.backend.native.intrinsics import jit
from runtime.backend.native.number_formats import floats, ints, longs, octets

is_due = jit(exit_rule.is_due)


@jit
def group_means(flight: Any, flying: Any, tested: Any, n: Any, group: Any, value: Any, mean: Any, count: Any) -> None:
    """As `exit_rule.group_means`, in the same order: of the values of n lanes in `tested`, each of them also in flight.

    Sets `mean` and `count`, how many values it is of, for each of the `flying` lanes in `flight`; a group is named by
    its last lane, and the count is 0 where a lane names none that was tested.
    """
    for i in range(flying):
        mean[flight[i]] = np.float32(0.0)
        count[flight[i]] = 0
    for i in range(n):
        mean[group[tested[i]]] += value[tested[i]]
        count[group[tested[i]]] += 1
    for i in range(flying):
        if count[flight[i]] > 0:
            mean[flight[i]] /= np.float32(count[flight[i]])


@jit
def _is_tested(buffers: Any, lane: Any) -> Any:
    """Whether a lane that iterated has its exit tested here. By the gate, a group's last token alone is."""
    criterion = ints(buffers.criterion)[lane]
    age = ints(buffers.age)[lane]
    may_exit = octets(buffers.tests)[lane] != 0 and criterion > 0
    counts = criterion != GATE or ints(buffers.group)[lane] == lane
    has_iterated = age <= ints(buffers.bound)[lane]
    least, step = ints(buffers.min_iterations)[lane], ints(buffers.check_every)[lane]
    return may_exit and counts and has_iterated and is_due(age, least, step)


@jit
def run_exit_tests(buffers: Any) -> Any:
    """Exit tests of the lanes in flight; a group that exits is told to leave now. How many groups were tested."""
    flight, batch, group = longs(buffers.flight), longs(buffers.batch), ints(buffers.group)
    mean, count = floats(buffers.exit_mean), longs(buffers.exit_count)
    n, flying = 0, flight[buffers.lanes]
    for i in range(flying):
        if _is_tested(buffers, flight[i]):
            batch[n] = flight[i]
            n += 1
    passes.measure(buffers, n)
    group_means(flight, flying, batch, n, group, floats(buffers.exit_value), mean, count)
    tested, threshold, criterion = longs(buffers.tested), floats(buffers.threshold), ints(buffers.criterion)
    until, age = ints(buffers.until), ints(buffers.age)
    groups = 0
    for i in range(flying):
        lane = flight[i]
        last = group[lane]
        if count[lane] > 0:
            tested[groups] = lane
            groups += 1
        if count[last] > 0:
            is_done = mean[last] >= threshold[last] if criterion[last] == GATE else mean[last] < threshold[last]
            if is_done:
                until[lane] = age[lane]
    return groups
