"""The native functions that Python calls, compiled at the first call for a type of weights and kept on disk."""

from __future__ import annotations

import functools
import hashlib
import itertools
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numba
from numba import from_dtype, njit, types
from numba.core.bytecode import FunctionIdentity
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature

from policies import exit_rule
from runtime.backend.native import passes, tasks, ticks
from runtime.backend.native.code_cache import CodeCache
from runtime.backend.native.intrinsics import FLAGS
from runtime.backend.native.number_formats import longs
from runtime.backend.native.tick_buffers import record_type
from runtime.console.logs import logger

_SLOW = 1.5
"""Seconds after which it is not just loading."""

_log = logger("runtime.device")

_carray: Any = numba.carray  # type: ignore[attr-defined]
_pointer: Any = types.CPointer

_OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": set(FLAGS), "error_model": "numpy"}

PRELUDE, ITERATE, CODA, HEAD, SAMPLE, MEASURE, SETTLE, JUDGE = range(8)
"""Passes over a batch: see `runtime.backend.native.passes`."""


class NativeFunctions(NamedTuple):
    """Native functions that run without the GIL."""

    advance: Callable[..., None]
    """advance(record, entering, most_ticks, counts): see `runtime.backend.native.ticks`."""
    perform: Callable[..., None]
    """perform(record, which pass, rows, counts)."""
    help_out: Callable[..., None]
    """help_out(record, worker, counts): see `runtime.backend.native.tasks`."""
    do_task: Any
    """A C function (record, task, worker); its `address` is what counts."""


@functools.cache
def load_native_functions(narrow: bool) -> NativeFunctions:
    """For bfloat16 weights or float32 ones. Compiles for a quarter of a minute where this machine has not yet."""
    kind = types.Array(from_dtype(record_type(narrow)), 1, "C")
    source = _fingerprint()

    def advance(record: Any, entering: Any, most_ticks: Any, counts: Any) -> None:
        counts[7] = source
        ticks.advance(record[0], entering, most_ticks, counts)

    def perform(record: Any, which: Any, n: Any, counts: Any) -> None:
        counts[7] = source
        buffers = record[0]
        if which == PRELUDE:
            passes.prelude(buffers, n)
        elif which == ITERATE:
            passes.iterate(buffers, n)
        elif which == CODA:
            passes.coda(buffers, n)
        elif which == HEAD:
            passes.head(buffers, n)
        elif which == SAMPLE:
            passes.sample(buffers, n)
        elif which == MEASURE:
            passes.measure(buffers, n)
        elif which == SETTLE:
            passes.settle(buffers, n)
        elif which == JUDGE:
            passes.judge(buffers, n, 0)

    def help_out(record: Any, worker: Any, counts: Any) -> None:
        counts[7] = source
        tasks.help_out(record[0], worker)

    def do_task(record: Any, task: Any, worker: Any) -> None:
        buffers = _carray(record, 1)[0]
        if task < 0:
            longs(buffers.shared)[0] = source
        tasks.do_task(buffers, task, worker)

    counts = types.Array(types.int64, 1, "C")
    slow = threading.Timer(_SLOW, _log.warning, ["compiling_native_code"], {"once": "on this machine", "seconds": 15})
    slow.start()
    problems: list[str] = []
    try:
        return NativeFunctions(
            advance=compile_function(types.void(kind, types.int64, types.int64, counts), advance, problems),
            perform=compile_function(types.void(kind, types.int64, types.int64, counts), perform, problems),
            help_out=compile_function(types.void(kind, types.int64, counts), help_out, problems),
            do_task=compile_callback(types.void(_pointer(kind.dtype), types.int64, types.int64), do_task, problems),
        )
    finally:
        slow.cancel()
        if problems:
            _log.warning("native_code_cache", problem=problems[0], more=len(problems) - 1)


def compile_function(signature: Any, function: Callable[..., None], problems: list[str]) -> Callable[..., None]:
    compiled: Any = njit(**_OPTIONS)(function)
    _give_cache(compiled, function, problems)
    _number_apart()
    compiled.compile(signature)
    compiled.disable_compile()
    native: Callable[..., None] = compiled
    return native


def compile_callback(signature: Any, function: Callable[..., None], problems: list[str]) -> Any:
    options = {name: value for name, value in _OPTIONS.items() if name != "nogil"}
    compiled = CFunc(function, normalize_signature(signature), {}, options)
    _give_cache(compiled, function, problems)
    _number_apart()
    compiled.compile()
    return compiled


def _number_apart() -> None:
    """Has functions numbered as in no other process.

    Numba tells functions of one name apart by numbers that begin anew in each process, as do those of record types. Two
    processes would give one name to code for different weights, and a third, which loads both, would mix them up.
    """
    FunctionIdentity._unique_ids = itertools.count(secrets.randbits(60))


def _give_cache(compiled: Any, function: Callable[..., None], problems: list[str]) -> None:
    """Has a function that is not compiled yet looked for on disk, and kept there."""
    try:
        compiled._cache = CodeCache(function, problems)
    except (OSError, RuntimeError) as error:
        # Numba finds no place at all, so every process compiles for itself.
        problems.append(str(error))


def _fingerprint() -> int:
    """Of the source of native code, as 62 bits.

    Numba looks at the file of the function that it has on disk, not at those of the functions it calls; as those that
    Python calls write this number, it does see when any of them has changed.
    """
    digest = hashlib.blake2b(digest_size=8)
    for path in (*sorted(Path(__file__).parent.glob("*.py")), Path(exit_rule.__file__)):
        digest.update(path.read_bytes())
    return int.from_bytes(digest.digest(), "little") >> 2
