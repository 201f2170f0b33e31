"""The clock that native ticks are timed with: the system's monotonic one, where C code has it."""

from __future__ import annotations

import sys
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from runtime.backend.native.intrinsics import call, intrinsic, jit

_MONOTONIC = {"linux": 1, "darwin": 6}
"""By system, its name of the clock that never goes back, which costs some 30 ns to ask."""

_LONG = ir.IntType(64)


@intrinsic
def _read(typing_context: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if sys.platform not in _MONOTONIC:
            return ir.Constant(_LONG, 0)
        moment = cgutils.alloca_once(builder, _LONG, size=2)
        call(builder, "clock_gettime", ir.IntType(32), ir.Constant(ir.IntType(32), _MONOTONIC[sys.platform]), moment)
        seconds = builder.load(moment)
        nanoseconds = builder.load(builder.gep(moment, [ir.Constant(_LONG, 1)]))
        return builder.add(builder.mul(seconds, ir.Constant(_LONG, 10**9)), nanoseconds)

    return types.int64(), generate


@jit
def nanoseconds() -> Any:
    """Nanoseconds since some moment; always 0 where there is no such clock."""
    return _read()
