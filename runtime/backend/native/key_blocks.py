"""Blocks of 16 numbers, a vector's width: what attention and sampling do to 16 positions, or 16 tokens, at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from runtime.backend.native.intrinsics import (
    FLAGS,
    FLOAT,
    FLOAT_VECTOR,
    INT,
    VECTOR,
    add_product,
    call,
    declare,
    element,
    exponential,
    intrinsic,
    is_bfloat,
    load,
    loop,
    splat,
    store,
    zeros,
)


@intrinsic
def block_scores(
    typing: Any, query: Any, q_start: Any, keys: Any, k_start: Any, width: Any, out: Any, o_start: Any
) -> Any:
    """out[o_start + p] = sum over d of query[q_start + d] * keys[k_start + 16 d + p], p below 16.

    d is below `width`, an even number; `query` and `out` are float32.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wanted, stored = args[0], args[2]
        two = ir.Constant(args[4].type, 2)

        def body(k: Any, sums: list[Any]) -> list[Any]:
            d = builder.mul(k, two)
            start = builder.add(args[3], builder.mul(d, ir.Constant(d.type, VECTOR)))
            totals = []
            for i, total in enumerate(sums):
                factor = splat(builder, builder.load(element(builder, wanted, builder.add(args[1], d), i), align=4))
                totals.append(add_product(builder, total, factor, load(builder, keys, stored, start, i * VECTOR)))
            return totals

        even, odd = loop(builder, builder.sdiv(args[4], two), zeros(2), body)
        store(builder, out, builder.fadd(even, odd, flags=FLAGS), args[5], args[6], 0)
        return context.get_dummy_value()

    index = types.intp
    return types.none(query, index, keys, index, index, out, index), generate


@intrinsic
def block_values(
    typing: Any, shares: Any, s_start: Any, values: Any, v_start: Any, width: Any, out: Any, o_start: Any, count: Any
) -> Any:
    """out[o_start + d] += sum over p below the literal `count` of shares[s_start + p] * values[v_start + p width + d].

    d is below `width`, a multiple of 16; `shares` and `out` are float32.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        given, stored = args[0], args[2]
        sums_at = args[5]
        positions = range(count.literal_value)
        factors = [splat(builder, builder.load(element(builder, given, args[1], p), align=4)) for p in positions]

        def body(k: Any, carried: list[Any]) -> list[Any]:
            d = builder.mul(k, ir.Constant(k.type, VECTOR))
            sums = zeros(min(4, len(factors)))
            for p in positions:
                row = builder.add(args[3], builder.mul(args[4], ir.Constant(args[4].type, p)))
                term = load(builder, values, stored, builder.add(row, d), 0)
                sums[p % 4] = add_product(builder, sums[p % 4], factors[p], term)
            at = builder.add(args[6], d)
            total = load(builder, out, sums_at, at, 0)
            for part in sums:
                total = builder.fadd(total, part, flags=FLAGS)
            store(builder, out, total, sums_at, at, 0)
            return []

        loop(builder, builder.sdiv(args[4], ir.Constant(args[4].type, VECTOR)), [], body)
        return context.get_dummy_value()

    index = types.intp
    return types.none(shares, index, values, index, index, out, index, count), generate


def _reduce(name: str) -> Callable[[Any, Any], Any]:
    def emit(builder: Any, vector: Any) -> Any:
        if name == "fmax":
            return call(builder, "llvm.vector.reduce.fmax.v16f32", FLOAT, vector)
        function = declare(
            builder.module, ir.FunctionType(FLOAT, [FLOAT, FLOAT_VECTOR]), "llvm.vector.reduce.fadd.v16f32"
        )
        return builder.call(function, [ir.Constant(FLOAT, 0.0), vector], fastmath=FLAGS)

    return emit


@intrinsic
def block_largest(typing: Any, scores: Any, start: Any) -> Any:
    """The largest of 16 float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = load(builder, scores, args[0], args[1], 0)
        return _reduce("fmax")(builder, vector)

    return types.float32(scores, types.intp), generate


@intrinsic
def block_exponentials(typing: Any, scores: Any, start: Any, largest: Any) -> Any:
    """Replaces 16 float32 by e to the power of (score - largest); returns their sum."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = args[0]
        vector = load(builder, scores, data, args[1], 0)
        vector = exponential(builder, builder.fsub(vector, splat(builder, args[2]), flags=FLAGS))
        store(builder, scores, vector, data, args[1], 0)
        return _reduce("fadd")(builder, vector)

    return types.float32(scores, types.intp, types.float32), generate


@intrinsic
def fetch(typing: Any, array: Any, start: Any, count: Any) -> Any:
    """Has `count` numbers of an array from `start` on (at least 1) brought into the cache, without waiting."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        per_line = 32 if is_bfloat(array) else 16
        octet = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [octet, INT, INT, INT])
        prefetch = declare(builder.module, kind, "llvm.prefetch.p0")
        how = [ir.Constant(INT, value) for value in (0, 3, 1)]
        lines = builder.sdiv(
            builder.add(args[2], ir.Constant(args[2].type, per_line - 1)), ir.Constant(args[2].type, per_line)
        )

        def body(k: Any, carried: list[Any]) -> list[Any]:
            at = builder.add(args[1], builder.mul(k, ir.Constant(k.type, per_line)))
            builder.call(prefetch, [builder.bitcast(builder.gep(args[0], [at]), octet), *how])
            return []

        loop(builder, lines, [], body)
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp), generate
