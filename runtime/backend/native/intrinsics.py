"""Pieces of LLVM code that the native functions' own intrinsics are put together from.

Left to the compiler, the loops that these are for ran several times slower. Numbers are float32, or bfloat16 held in
16-bit integers; all sums are float32. Every sum is made in an order that depends on its own operands alone, so a
token's result is bitwise the same in any batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import extending, njit, types
from numba.core import cgutils

VECTOR = 16
"""Floats in the widest vector register there is; the compiler splits vectors for machines with narrower ones."""

FLAGS = ("reassoc", "contract", "nsz")
jit: Callable[..., Any] = njit(nogil=True, fastmath=set(FLAGS), error_model="numpy")
"""For native functions that others of them call."""
jit_as_written: Callable[..., Any] = njit(nogil=True, error_model="numpy")
"""For those whose every operation rounds, as in PyTorch."""

declare: Callable[..., Any] = cgutils.get_or_insert_function
pointer: Callable[[Any], Any] = types.CPointer
intrinsic: Callable[..., Any] = extending.intrinsic(prefer_literal=True)
"""For functions whose code is generated here, piece by piece, instead of compiled from Python."""
FLOAT = ir.FloatType()
INT = ir.IntType(32)
FLOAT_VECTOR = ir.VectorType(FLOAT, VECTOR)
INT_VECTOR = ir.VectorType(INT, VECTOR)
HALF_VECTOR = ir.VectorType(ir.IntType(16), VECTOR)


class BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


BFLOAT_PAIRS = ir.VectorType(BFloat(), 2 * VECTOR)


def element(builder: Any, data: Any, start: Any, offset: int) -> Any:
    return builder.gep(data, [builder.add(start, ir.Constant(start.type, offset))])


def in_all(value: int) -> Any:
    """An integer vector of one number."""
    return ir.Constant(INT_VECTOR, [value] * VECTOR)


def splat(builder: Any, value: Any) -> Any:
    kind = ir.VectorType(value.type, VECTOR)
    empty = ir.Constant(kind, ir.Undefined)
    lane = builder.insert_element(empty, value, ir.Constant(INT, 0))
    return builder.shuffle_vector(lane, empty, in_all(0))


def is_bfloat(kind: Any) -> bool:
    return kind.dtype == types.uint16


def load(builder: Any, kind: Any, data: Any, start: Any, offset: int) -> Any:
    """A float vector from a float32 array, or from bfloat16 as uint16."""
    address = element(builder, data, start, offset)
    if not is_bfloat(kind):
        return builder.load(builder.bitcast(address, FLOAT_VECTOR.as_pointer()), align=4)
    stored = builder.load(builder.bitcast(address, HALF_VECTOR.as_pointer()), align=2)
    return builder.bitcast(builder.shl(builder.zext(stored, INT_VECTOR), in_all(16)), FLOAT_VECTOR)


def rounded(builder: Any, vector: Any) -> Any:
    """A float vector as bfloat16 in 16-bit integers, to nearest, ties to even. Not for NaN."""
    bits = builder.bitcast(vector, INT_VECTOR)
    odd = builder.and_(builder.lshr(bits, in_all(16)), in_all(1))
    bits = builder.add(bits, builder.add(odd, in_all(0x7FFF)))
    return builder.trunc(builder.lshr(bits, in_all(16)), HALF_VECTOR)


def store(builder: Any, kind: Any, vector: Any, data: Any, start: Any, offset: int) -> None:
    address = element(builder, data, start, offset)
    if is_bfloat(kind):
        builder.store(rounded(builder, vector), builder.bitcast(address, HALF_VECTOR.as_pointer()), align=2)
    else:
        builder.store(vector, builder.bitcast(address, FLOAT_VECTOR.as_pointer()), align=4)


def call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    function = declare(builder.module, ir.FunctionType(result, [arg.type for arg in args]), name)
    return builder.call(function, args)


def exponential(builder: Any, x: Any) -> Any:
    """e to the power of a float vector, clipped to [-87, 88], to about 1e-7 of the result (Cephes). NaN stays NaN."""

    def constant(value: float) -> Any:
        return ir.Constant(FLOAT_VECTOR, [value] * VECTOR)

    def times_plus(a: Any, b: Any, c: Any) -> Any:
        return builder.fadd(builder.fmul(a, b, flags=FLAGS), c, flags=FLAGS)

    for relation, bound in (("<", constant(-87.0)), (">", constant(88.0))):
        x = builder.select(builder.fcmp_ordered(relation, x, bound), bound, x)
    power = call(builder, "llvm.floor.v16f32", FLOAT_VECTOR, times_plus(x, constant(1.44269504), constant(0.5)))
    x = times_plus(power, constant(-0.693359375), x)
    x = times_plus(power, constant(2.12194440e-4), x)
    y = constant(1.9875691500e-4)
    for term in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        y = times_plus(y, x, constant(term))
    y = builder.fadd(times_plus(builder.fmul(y, x, flags=FLAGS), x, x), constant(1.0), flags=FLAGS)
    exponent = builder.add(builder.fptosi(power, INT_VECTOR), in_all(127))
    scale = builder.bitcast(builder.shl(exponent, in_all(23)), FLOAT_VECTOR)
    return builder.fmul(y, scale, flags=FLAGS)


def loop(builder: Any, count: Any, initial: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
    """Emits `for k in range(count)` around `body(k, carried) -> carried`, for a count of at least 1."""
    before = builder.block
    around, after = builder.append_basic_block("loop"), builder.append_basic_block("loop.end")
    builder.branch(around)
    builder.position_at_end(around)
    k = builder.phi(count.type)
    k.add_incoming(ir.Constant(count.type, 0), before)
    carried = []
    for value in initial:
        phi = builder.phi(value.type)
        phi.add_incoming(value, before)
        carried.append(phi)
    results = body(k, carried)
    following = builder.add(k, ir.Constant(count.type, 1))
    k.add_incoming(following, builder.block)
    for phi, value in zip(carried, results, strict=True):
        phi.add_incoming(value, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, count), around, after)
    builder.position_at_end(after)
    return results


def add_product(builder: Any, total: Any, a: Any, b: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=FLAGS), total, flags=FLAGS)


def zeros(count: int) -> list[Any]:
    return [ir.Constant(FLOAT_VECTOR, [0.0] * VECTOR) for _ in range(count)]
