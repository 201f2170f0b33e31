"""The paged attention kernel in Numba; importing this needs Numba, compiling waits for the first call.

Loops over `head_dim` are explicit vector instructions: left to the compiler, they ran three to four times slower.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

Kernel = Callable[..., bool]

_FLAGS = ("reassoc", "contract", "nsz")
_FLOAT = ir.FloatType()
_MOST_LANES = 16
"""Floats in the widest vector register there is; the compiler splits vectors for machines with narrower ones."""

_compiled: Callable[..., Any] = njit(nogil=True, fastmath=set(_FLAGS), error_model="numpy")
_declare: Callable[..., Any] = cgutils.get_or_insert_function
_vectorised: Callable[..., Any] = intrinsic(prefer_literal=True)


def _vectors(context: Any, builder: Any, array_type: Any, array: Any, start: Any, count: int) -> list[tuple[Any, Any]]:
    """Loads `count` numbers of a float32 array, or of bfloat16 as uint16: (float vector, its address) in order."""
    lanes = math.gcd(count, _MOST_LANES)
    wide = ir.VectorType(_FLOAT, lanes)
    bits = ir.VectorType(ir.IntType(32), lanes)
    narrow = array_type.dtype == types.uint16
    stored = ir.VectorType(ir.IntType(16), lanes) if narrow else wide
    data = context.make_array(array_type)(context, builder, array).data
    loaded = []
    for offset in range(0, count, lanes):
        index = builder.add(start, ir.Constant(start.type, offset))
        address = builder.bitcast(builder.gep(data, [index]), stored.as_pointer())
        vector = builder.load(address, align=2 if narrow else 4)
        if narrow:
            shifted = builder.shl(builder.zext(vector, bits), ir.Constant(bits, [16] * lanes))
            vector = builder.bitcast(shifted, wide)
        loaded.append((vector, address))
    return loaded


@_vectorised
def dot(typing: Any, a: Any, a_start: Any, b: Any, b_start: Any, count: Any) -> Any:
    """Sum of a[a_start + i] * b[b_start + i] for i below the literal `count`, in float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        left = _vectors(context, builder, a, args[0], args[1], count.literal_value)
        right = _vectors(context, builder, b, args[2], args[3], count.literal_value)
        total = None
        for (x, _), (y, _) in zip(left, right, strict=True):
            product = builder.fmul(x, y, flags=_FLAGS)
            total = product if total is None else builder.fadd(product, total, flags=_FLAGS)
        vector = left[0][0].type
        reduce = _declare(
            builder.module,
            ir.FunctionType(_FLOAT, [_FLOAT, vector]),
            f"llvm.vector.reduce.fadd.v{vector.count}f32",
        )
        return builder.call(reduce, [ir.Constant(_FLOAT, 0.0), total], fastmath=_FLAGS)

    return types.float32(a, types.intp, b, types.intp, count), generate


@_vectorised
def add_scaled(typing: Any, out: Any, out_start: Any, scale: Any, a: Any, a_start: Any, count: Any) -> Any:
    """out[out_start + i] += scale * a[a_start + i] for i below the literal `count`; `out` is float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums = _vectors(context, builder, out, args[0], args[1], count.literal_value)
        terms = _vectors(context, builder, a, args[3], args[4], count.literal_value)
        vector = sums[0][0].type
        first = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
        empty = ir.Constant(vector, ir.Undefined)
        lane = builder.insert_element(empty, args[2], ir.Constant(ir.IntType(32), 0))
        factor = builder.shuffle_vector(lane, empty, first)
        for (total, address), (term, _) in zip(sums, terms, strict=True):
            product = builder.fmul(factor, term, flags=_FLAGS)
            builder.store(builder.fadd(product, total, flags=_FLAGS), address, align=4)
        return context.get_dummy_value()

    return types.none(out, types.intp, types.float32, a, types.intp, count), generate


@_compiled
def exp(x: Any) -> Any:
    """e to the power x for float32 x <= 0, to about 1e-7 of the result; vectorises, unlike the library's (Cephes)."""
    x = max(x, np.float32(-87.0))
    power = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    x = x - power * np.float32(0.693359375) + power * np.float32(2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    y = y * x + np.float32(1.3981999507e-3)
    y = y * x + np.float32(8.3334519073e-3)
    y = y * x + np.float32(4.1665795894e-2)
    y = y * x + np.float32(1.6666665459e-1)
    y = y * x + np.float32(5.0000001201e-1)
    y = y * x * x + x + np.float32(1.0)
    return y * np.int32((np.int32(power) + np.int32(127)) << np.int32(23)).view(np.float32)


@_compiled
def softmax(scores: Any, length: Any) -> None:
    """Softmax of the first `length` float32 scores, in place."""
    largest = scores[0]
    for i in range(1, length):
        largest = max(largest, scores[i])
    total = np.float32(0.0)
    for i in range(length):
        scores[i] = exp(scores[i] - largest)
        total += scores[i]
    inverse = np.float32(1.0) / total
    for i in range(length):
        scores[i] *= inverse


@functools.cache
def attention_kernel(head_dim: int) -> Kernel:
    """The kernel for one head width, cached on disk where a directory for it can be written.

    Call it with memory (keys and values flat, bfloat16 as uint16; depths; page table), queries (row, position,
    slot), column, slots, and query (float32), key, value (as in memory) and out (float32), each [n, heads, head_dim];
    all arrays contiguous. Returns whether every index was in range; out of range it stops early. One query's
    arithmetic never depends on another's, so its result is bitwise the same in any batch.
    """

    def attend(
        keys: Any,
        values: Any,
        depths: Any,
        page_table: Any,
        row: Any,
        position: Any,
        slot: Any,
        column: Any,
        slots: Any,
        query: Any,
        key: Any,
        value: Any,
        out: Any,
    ) -> Any:
        pages, page_size = depths.shape
        n, heads = query.shape[:2]
        width = heads * head_dim
        if column < 0 or (column + slots) * pages * page_size * width > keys.size:
            return False
        new_keys, new_values = key.reshape(-1), value.reshape(-1)
        longest = 0
        for i in range(n):
            if not (0 <= row[i] < page_table.shape[0] and 0 <= slot[i] < slots):
                return False
            if not 0 <= position[i] < page_table.shape[1] * page_size:
                return False
            page = page_table[row[i], position[i] // page_size]
            if not 0 <= page < pages:
                return False
            start = (((column + slot[i]) * pages + page) * page_size + position[i] % page_size) * width
            for j in range(width):
                keys[start + j] = new_keys[i * width + j]
                values[start + j] = new_values[i * width + j]
            longest = max(longest, position[i] + 1)

        scale = np.float32(1.0 / math.sqrt(head_dim))
        scaled = np.empty(width, np.float32)
        starts = np.empty(longest, np.int64)
        scores = np.empty((heads, longest), np.float32)
        wanted, attended = query.reshape(-1), out.reshape(-1)
        for i in range(n):
            length = position[i] + 1
            for first in range(0, length, page_size):
                page = page_table[row[i], first // page_size]
                if not 0 <= page < pages:
                    return False
                for offset in range(min(page_size, length - first)):
                    read = column
                    if slots > 1:
                        read += max(0, min(slot[i], depths[page, offset] - 1))
                    starts[first + offset] = ((read * pages + page) * page_size + offset) * width
            for j in range(width):
                scaled[j] = wanted[i * width + j] * scale
                attended[i * width + j] = np.float32(0.0)
            for p in range(length):
                for h in range(heads):
                    scores[h, p] = dot(scaled, h * head_dim, keys, starts[p] + h * head_dim, head_dim)
            for h in range(heads):
                softmax(scores[h], length)
            for p in range(length):
                for h in range(heads):
                    place = i * width + h * head_dim
                    add_scaled(attended, place, scores[h, p], values, starts[p] + h * head_dim, head_dim)
        return True

    compiled = _compiled(attend)
    # Where Numba finds no place it may write to, every process compiles for itself.
    with contextlib.suppress(RuntimeError):
        compiled.enable_caching()
    kernel: Kernel = compiled
    return kernel
