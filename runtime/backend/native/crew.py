"""The workers that share a tick's work, and how they meet.

One of them, the caller, leads: it publishes a phase of so many tasks, does tasks itself, and goes on when all are
done. Helpers claim what tasks they can get. A phase that no helper comes to is done by the leader alone, so a helper
that the system has put aside delays no one by more than the task it has in hand.

The state they share is an int64 array. Its word WORD holds phase << 32 | tasks << 16 | next task, so that one atomic
addition claims a task of the phase that is on.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from runtime.backend.native.intrinsics import declare, intrinsic, jit, pointer

WORD, DONE, SLEEPING, STOP, JOB = 0, 16, 32, 48, 64
"""Places in the shared array; each has a cache line of its own."""
SHARED_SIZE = 80
MOST_TASKS = 60_000

_SPINS = 4_000
"""Looks at an idle word before a helper sleeps: some tens of microseconds, the length of a pause between two ticks."""
_SEMAPHORE_BYTES = 64

_SEMAPHORE = pointer(types.uint8)
_post = types.ExternalFunction("sem_post", types.intc(_SEMAPHORE))
_wait = types.ExternalFunction("sem_wait", types.intc(_SEMAPHORE))


@intrinsic
def atomic_add(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Adds to an int64; the value before."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", builder.gep(args[0], [args[1]]), args[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), generate


@intrinsic
def atomic_swap(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Stores an int64; the value before."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("xchg", builder.gep(args[0], [args[1]]), args[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), generate


@intrinsic
def atomic_load(typing: Any, array: Any, index: Any) -> Any:
    """An int64 as other workers have last left it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(builder.gep(args[0], [args[1]]), "seq_cst", 8)

    return types.int64(array, types.intp), generate


@intrinsic
def pause(typing: Any) -> Any:
    """Tells the processor that this is a waiting loop."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if builder.module.triple.startswith(("x86_64", "i686")):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(declare(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.none(), generate


@intrinsic
def call_task(typing: Any, address: Any, buffers: Any, task: Any, worker: Any) -> Any:
    """Calls a C function (record, task, worker) at an address.

    Through an address, because what one Numba function calls is compiled once more with it.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [args[1].type, number, number])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.none(types.uint64, buffers, types.int64, types.int64), generate


@jit
def publish(shared: Any, semaphore: Any, count: Any) -> None:
    """Begins a phase of `count` tasks, waking helpers that sleep."""
    phase = (shared[WORD] >> 32) + 1
    atomic_swap(shared, DONE, 0)
    atomic_swap(shared, WORD, (phase << 32) | (count << 16))
    if atomic_load(shared, SLEEPING) > 0:
        for _ in range(atomic_swap(shared, SLEEPING, 0)):
            _post(semaphore)


@jit
def claim(shared: Any) -> Any:
    """The number of a task to do, or -1 if there is none left in the phase that is on."""
    word = atomic_load(shared, WORD)
    if (word & 0xFFFF) >= ((word >> 16) & 0xFFFF):
        return -1
    word = atomic_add(shared, WORD, 1)
    task = word & 0xFFFF
    return task if task < ((word >> 16) & 0xFFFF) else -1


@jit
def finish(shared: Any) -> None:
    """Says that a claimed task is done."""
    atomic_add(shared, DONE, 1)


@jit
def wait_for(shared: Any, count: Any) -> None:
    """Waits until all tasks of the phase are done."""
    while atomic_load(shared, DONE) < count:
        pause()


@jit
def rest(shared: Any, semaphore: Any, idle: Any) -> Any:
    """What a helper does when it finds no task: look again, or sleep. Idle looks so far; -1 to end."""
    if idle < _SPINS:
        pause()
        return idle + 1
    if atomic_load(shared, STOP):
        return -1
    atomic_add(shared, SLEEPING, 1)
    _wait(semaphore)
    return 0


def can_help() -> bool:
    """Whether helpers can sleep on this system: POSIX semaphores without a name."""
    return sys.platform == "linux"


class Crew:
    """Helpers, each a thread of the operating system that runs `work(number)`, natively and without the GIL, until
    `stop`."""

    def __init__(self, helpers: int) -> None:
        self.shared = np.zeros(SHARED_SIZE, np.int64)
        self.semaphore = np.zeros(_SEMAPHORE_BYTES, np.uint8)
        self._helpers = helpers if can_help() else 0
        self._started: list[threading.Thread] = []
        if self._helpers:
            ctypes.CDLL(None).sem_init(ctypes.c_void_p(self.semaphore.ctypes.data), 0, 0)

    @property
    def workers(self) -> int:
        """How many share the work, the leader included."""
        return self._helpers + 1

    def start(self, work: Callable[[int], None]) -> None:
        for number in range(1, self._helpers + 1):
            thread = threading.Thread(target=work, args=(number,), name=f"braid-helper-{number}", daemon=True)
            thread.start()
            self._started.append(thread)

    def stop(self) -> None:
        """Ends the helpers and waits for them; no phase may be on."""
        self.shared[STOP] = 1
        post = ctypes.CDLL(None).sem_post if self._started else None
        for _ in self._started:
            assert post is not None
            post(ctypes.c_void_p(self.semaphore.ctypes.data))
        for thread in self._started:
            thread.join()
        self._started.clear()
