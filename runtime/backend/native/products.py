"""Matrix products in tiles: a few rows by one panel of packed weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from runtime.backend.native.activations import silu
from runtime.backend.native.intrinsics import (
    BFLOAT_PAIRS,
    FLAGS,
    FLOAT,
    FLOAT_VECTOR,
    INT,
    INT_VECTOR,
    VECTOR,
    add_product,
    call,
    element,
    in_all,
    intrinsic,
    is_bfloat,
    load,
    loop,
    splat,
    store,
    zeros,
)

PANEL = 64
"""Columns of a weight matrix that are stored together."""
ROWS = 6
"""Most rows of a matrix tile: with a panel's four vectors for each, the sums fill the registers of AVX-512."""

VECTORS = PANEL // VECTOR


def _sums(paired: bool, context: Any, builder: Any, signature: Any, args: Any, rows: int) -> list[list[Any]]:
    """Emits the loop of a tile over the inner dimension; the sums, [rows][4] vectors."""
    weights_type = signature.args[3]
    acts, weights = args[0], args[3]
    a_start, a_stride, w_start, count = args[1], args[2], args[4], args[5]
    narrow = is_bfloat(weights_type)
    step = 2 if narrow else 1

    def constant(value: int) -> Any:
        return ir.Constant(count.type, value)

    if narrow:
        count = builder.lshr(builder.add(count, constant(1)), constant(1))
    acts_of = [builder.gep(acts, [builder.add(a_start, builder.mul(a_stride, constant(r)))]) for r in range(rows)]
    panel = builder.gep(weights, [w_start])

    def body(k: Any, sums: list[Any]) -> list[Any]:
        raw = (INT_VECTOR if narrow else FLOAT_VECTOR).as_pointer()
        first = builder.mul(k, constant(PANEL * step))
        columns = [element(builder, panel, first, v * VECTOR * step) for v in range(VECTORS)]
        columns = [builder.load(builder.bitcast(at, raw), align=4) for at in columns]
        totals = []
        for r in range(rows):
            at = builder.gep(acts_of[r], [builder.mul(k, constant(step))])
            factor = splat(builder, builder.load(builder.bitcast(at, (INT if narrow else FLOAT).as_pointer()), align=2))
            for v in range(VECTORS):
                total = sums[r * VECTORS + v]
                if narrow:
                    totals.append(_add_pairs(builder, paired, total, factor, columns[v]))
                else:
                    totals.append(add_product(builder, total, factor, columns[v]))
        return totals

    totals = loop(builder, count, zeros(rows * VECTORS), body)
    return [totals[r * VECTORS : (r + 1) * VECTORS] for r in range(rows)]


def _add_pairs(builder: Any, paired: bool, total: Any, a: Any, b: Any) -> Any:
    """Adds the products of two bfloat16 in each 32 bits: by one instruction where there is one."""
    if paired:
        pairs = builder.bitcast(a, BFLOAT_PAIRS), builder.bitcast(b, BFLOAT_PAIRS)
        return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", FLOAT_VECTOR, total, *pairs)
    sixteen, high = in_all(16), in_all(-65536)
    low = [builder.bitcast(builder.shl(bits, sixteen), FLOAT_VECTOR) for bits in (a, b)]
    total = add_product(builder, total, *low)
    return add_product(builder, total, *(builder.bitcast(builder.and_(bits, high), FLOAT_VECTOR) for bits in (a, b)))


def matrix_tile(gated: bool, paired: bool) -> Callable[..., Any]:
    """An intrinsic that multiplies a few rows with one panel of packed weights.

    tile(acts, a_start, a_stride, weights, w_start, count, out, o_start, o_stride, rows, adds): out[r, c] = sum over k
    below `count` of acts[a_start + r * a_stride + k] * panel[k, c], for r below `rows` (1 to 6) and c below 64, added
    to what is in `out` if `adds`. A gated tile writes 32 columns instead: SiLU of the first 32 sums times the others.
    `paired` says that the processor multiplies pairs of bfloat16.
    """

    def typed(
        typing: Any,
        acts: Any,
        a_start: Any,
        a_stride: Any,
        weights: Any,
        w_start: Any,
        count: Any,
        out: Any,
        o_start: Any,
        o_stride: Any,
        rows: Any,
        adds: Any,
    ) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any, count: int) -> None:
            data = args[6]
            for r, sums in enumerate(_sums(paired, context, builder, signature, args, count)):
                start = builder.add(args[7], builder.mul(args[8], ir.Constant(args[8].type, r)))
                vectors = _gated(builder, sums) if gated else sums
                for v, vector in enumerate(vectors):
                    if not gated:
                        before = builder.select(args[10], load(builder, out, data, start, v * VECTOR), zeros(1)[0])
                        vector = builder.fadd(vector, before, flags=FLAGS)
                    store(builder, out, vector, data, start, v * VECTOR)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            cases = [builder.append_basic_block(f"rows.{count}") for count in range(1, ROWS + 1)]
            after = builder.append_basic_block("rows.end")
            choice = builder.switch(args[9], cases[0])
            for count, case in enumerate(cases, 1):
                choice.add_case(ir.Constant(args[9].type, count), case)
                builder.position_at_end(case)
                emit(context, builder, signature, args, count)
                builder.branch(after)
            builder.position_at_end(after)
            return context.get_dummy_value()

        index = types.intp
        signature = types.none(acts, index, index, weights, index, index, out, index, index, index, types.boolean)
        return signature, generate

    return intrinsic(typed)


def _gated(builder: Any, sums: list[Any]) -> list[Any]:
    half = len(sums) // 2
    return [
        builder.fmul(silu(builder, gate), up, flags=FLAGS) for gate, up in zip(sums[:half], sums[half:], strict=True)
    ]
