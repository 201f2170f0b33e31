"""Native work for a crew that can be checked: every task of every phase counts itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from runtime.backend.native.crew import JOB, atomic_add, claim, finish, publish, rest, wait_for
from runtime.backend.native.number_formats import longs, octets


@njit(nogil=True)
def work_of(shared: Any, number: Any, task: Any) -> None:
    """Counts task `task` of the phase whose counts begin at the address in JOB, and who did it."""
    job = longs(shared)
    atomic_add(longs(np.uint64(job[JOB])), task, 1)
    atomic_add(longs(np.uint64(job[JOB + 1])), number, 1)


@njit(nogil=True)
def lead(shared: Any, semaphore: Any, sizes: Any, counts: Any, done_by: Any) -> Any:
    """Phases of `sizes` tasks, counted in the rows of `counts`; the number of the first that was left with a task not
    done exactly once, or -1."""
    words, sleepers = longs(shared), octets(semaphore)
    for phase in range(len(sizes)):
        words[JOB] = np.int64(counts[phase : phase + 1].ctypes.data)
        words[JOB + 1] = np.int64(done_by.ctypes.data)
        publish(words, sleepers, sizes[phase])
        task = claim(words)
        while task >= 0:
            work_of(shared, 0, task)
            finish(words)
            task = claim(words)
        wait_for(words, sizes[phase])
        for task in range(counts.shape[1]):
            if counts[phase, task] != (1 if task < sizes[phase] else 0):
                return phase
    return -1


@njit(nogil=True)
def follow(shared: Any, semaphore: Any, number: Any) -> None:
    """What a helper does until the crew is stopped."""
    words, sleepers = longs(shared), octets(semaphore)
    idle = 0
    while idle >= 0:
        task = claim(words)
        if task >= 0:
            work_of(shared, number, task)
            finish(words)
            idle = 0
        else:
            idle = rest(words, sleepers, idle)
