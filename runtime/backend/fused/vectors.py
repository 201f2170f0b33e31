"""Vector instructions for Numba functions: matrix tiles, strips of attention, and conversions to bfloat16.

Left to the compiler, the loops that these replace ran several times slower. Numbers are float32, or bfloat16 held in
uint16 arrays; all sums are float32. Every sum is made in an order that depends on its own operands alone, so a token's
result is bitwise the same in any batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
"""Floats in the widest vector register there is; the compiler splits vectors for machines with narrower ones."""
PANEL = 64
"""Columns of a weight matrix that are stored together."""
ROWS = 6
"""Most rows of a matrix tile: with a panel's four vectors for each, the sums fill the registers of AVX-512."""

FLAGS = ("reassoc", "contract", "nsz")
compiled: Callable[..., Any] = njit(nogil=True, fastmath=set(FLAGS), error_model="numpy")
"""For functions that are called from others."""

_declare: Callable[..., Any] = cgutils.get_or_insert_function
_pointer: Callable[[Any], Any] = types.CPointer
_vectorised: Callable[..., Any] = intrinsic(prefer_literal=True)
_FLOAT = ir.FloatType()
_INT = ir.IntType(32)
_WIDE = ir.VectorType(_FLOAT, LANES)
_BITS = ir.VectorType(_INT, LANES)
_HALF = ir.VectorType(ir.IntType(16), LANES)


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


_PAIRS = ir.VectorType(_BFloat(), 2 * LANES)


def _at(builder: Any, data: Any, start: Any, offset: int) -> Any:
    return builder.gep(data, [builder.add(start, ir.Constant(start.type, offset))])


def _splat(builder: Any, value: Any) -> Any:
    kind = ir.VectorType(value.type, LANES)
    empty = ir.Constant(kind, ir.Undefined)
    lane = builder.insert_element(empty, value, ir.Constant(_INT, 0))
    return builder.shuffle_vector(lane, empty, ir.Constant(_BITS, [0] * LANES))


def _is_narrow(kind: Any) -> bool:
    return kind.dtype == types.uint16


def _load(builder: Any, kind: Any, data: Any, start: Any, offset: int) -> Any:
    """A float vector from a float32 array, or from bfloat16 as uint16."""
    address = _at(builder, data, start, offset)
    if not _is_narrow(kind):
        return builder.load(builder.bitcast(address, _WIDE.as_pointer()), align=4)
    stored = builder.load(builder.bitcast(address, _HALF.as_pointer()), align=2)
    return builder.bitcast(builder.shl(builder.zext(stored, _BITS), ir.Constant(_BITS, [16] * LANES)), _WIDE)


def _rounded(builder: Any, vector: Any) -> Any:
    """A float vector as bfloat16 in 16-bit integers, to nearest, ties to even. Not for NaN."""
    bits = builder.bitcast(vector, _BITS)
    odd = builder.and_(builder.lshr(bits, ir.Constant(_BITS, [16] * LANES)), ir.Constant(_BITS, [1] * LANES))
    bits = builder.add(bits, builder.add(odd, ir.Constant(_BITS, [0x7FFF] * LANES)))
    return builder.trunc(builder.lshr(bits, ir.Constant(_BITS, [16] * LANES)), _HALF)


def _store(builder: Any, kind: Any, vector: Any, data: Any, start: Any, offset: int) -> None:
    address = _at(builder, data, start, offset)
    if _is_narrow(kind):
        builder.store(_rounded(builder, vector), builder.bitcast(address, _HALF.as_pointer()), align=2)
    else:
        builder.store(vector, builder.bitcast(address, _WIDE.as_pointer()), align=4)


def _call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    function = _declare(builder.module, ir.FunctionType(result, [arg.type for arg in args]), name)
    return builder.call(function, args)


def _exp(builder: Any, x: Any) -> Any:
    """e to the power of a float vector, clipped to [-87, 88], to about 1e-7 of the result (Cephes)."""

    def constant(value: float) -> Any:
        return ir.Constant(_WIDE, [value] * LANES)

    def times_plus(a: Any, b: Any, c: Any) -> Any:
        return builder.fadd(builder.fmul(a, b, flags=FLAGS), c, flags=FLAGS)

    x = _call(builder, "llvm.maxnum.v16f32", _WIDE, x, constant(-87.0))
    x = _call(builder, "llvm.minnum.v16f32", _WIDE, x, constant(88.0))
    power = _call(builder, "llvm.floor.v16f32", _WIDE, times_plus(x, constant(1.44269504), constant(0.5)))
    x = times_plus(power, constant(-0.693359375), x)
    x = times_plus(power, constant(2.12194440e-4), x)
    y = constant(1.9875691500e-4)
    for term in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        y = times_plus(y, x, constant(term))
    y = builder.fadd(times_plus(builder.fmul(y, x, flags=FLAGS), x, x), constant(1.0), flags=FLAGS)
    exponent = builder.add(builder.fptosi(power, _BITS), ir.Constant(_BITS, [127] * LANES))
    scale = builder.bitcast(builder.shl(exponent, ir.Constant(_BITS, [23] * LANES)), _WIDE)
    return builder.fmul(y, scale, flags=FLAGS)


def _loop(builder: Any, count: Any, initial: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
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


def _add_product(builder: Any, total: Any, a: Any, b: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=FLAGS), total, flags=FLAGS)


def _zeros(count: int) -> list[Any]:
    return [ir.Constant(_WIDE, [0.0] * LANES) for _ in range(count)]


# ---- matrix products ------------------------------------------------------------------------------------------------

_VECTORS = PANEL // LANES


def _sums(paired: bool, context: Any, builder: Any, signature: Any, args: Any, rows: int) -> list[list[Any]]:
    """Emits the loop of a tile over the inner dimension; the sums, [rows][4] vectors."""
    weights_type = signature.args[3]
    acts, weights = args[0], args[3]
    a_start, a_stride, w_start, count = args[1], args[2], args[4], args[5]
    narrow = _is_narrow(weights_type)
    step = 2 if narrow else 1

    def constant(value: int) -> Any:
        return ir.Constant(count.type, value)

    if narrow:
        count = builder.lshr(builder.add(count, constant(1)), constant(1))
    acts_of = [builder.gep(acts, [builder.add(a_start, builder.mul(a_stride, constant(r)))]) for r in range(rows)]
    panel = builder.gep(weights, [w_start])

    def body(k: Any, sums: list[Any]) -> list[Any]:
        raw = (_BITS if narrow else _WIDE).as_pointer()
        first = builder.mul(k, constant(PANEL * step))
        columns = [_at(builder, panel, first, v * LANES * step) for v in range(_VECTORS)]
        columns = [builder.load(builder.bitcast(at, raw), align=4) for at in columns]
        totals = []
        for r in range(rows):
            at = builder.gep(acts_of[r], [builder.mul(k, constant(step))])
            factor = _splat(
                builder, builder.load(builder.bitcast(at, (_INT if narrow else _FLOAT).as_pointer()), align=2)
            )
            for v in range(_VECTORS):
                total = sums[r * _VECTORS + v]
                if narrow:
                    totals.append(_add_pairs(builder, paired, total, factor, columns[v]))
                else:
                    totals.append(_add_product(builder, total, factor, columns[v]))
        return totals

    totals = _loop(builder, count, _zeros(rows * _VECTORS), body)
    return [totals[r * _VECTORS : (r + 1) * _VECTORS] for r in range(rows)]


def _add_pairs(builder: Any, paired: bool, total: Any, a: Any, b: Any) -> Any:
    """Adds the products of two bfloat16 in each 32 bits: by one instruction where there is one."""
    if paired:
        pairs = builder.bitcast(a, _PAIRS), builder.bitcast(b, _PAIRS)
        return _call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", _WIDE, total, *pairs)
    sixteen, high = ir.Constant(_BITS, [16] * LANES), ir.Constant(_BITS, [-65536] * LANES)
    low = [builder.bitcast(builder.shl(bits, sixteen), _WIDE) for bits in (a, b)]
    total = _add_product(builder, total, *low)
    return _add_product(builder, total, *(builder.bitcast(builder.and_(bits, high), _WIDE) for bits in (a, b)))


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
                        before = builder.select(args[10], _load(builder, out, data, start, v * LANES), _zeros(1)[0])
                        vector = builder.fadd(vector, before, flags=FLAGS)
                    _store(builder, out, vector, data, start, v * LANES)

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

    return _vectorised(typed)


def _gated(builder: Any, sums: list[Any]) -> list[Any]:
    half = len(sums) // 2
    one = ir.Constant(_WIDE, [1.0] * LANES)
    gated = []
    for gate, up in zip(sums[:half], sums[half:], strict=True):
        bottom = builder.fadd(_exp(builder, builder.fneg(gate)), one, flags=FLAGS)
        gated.append(builder.fmul(builder.fdiv(gate, bottom, flags=FLAGS), up, flags=FLAGS))
    return gated


# ---- strips of 16 positions -----------------------------------------------------------------------------------------


@_vectorised
def strip_scores(
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
            start = builder.add(args[3], builder.mul(d, ir.Constant(d.type, LANES)))
            totals = []
            for i, total in enumerate(sums):
                factor = _splat(builder, builder.load(_at(builder, wanted, builder.add(args[1], d), i), align=4))
                totals.append(_add_product(builder, total, factor, _load(builder, keys, stored, start, i * LANES)))
            return totals

        even, odd = _loop(builder, builder.sdiv(args[4], two), _zeros(2), body)
        _store(builder, out, builder.fadd(even, odd, flags=FLAGS), args[5], args[6], 0)
        return context.get_dummy_value()

    index = types.intp
    return types.none(query, index, keys, index, index, out, index), generate


@_vectorised
def strip_values(
    typing: Any, shares: Any, s_start: Any, values: Any, v_start: Any, width: Any, out: Any, o_start: Any, count: Any
) -> Any:
    """out[o_start + d] += sum over p below the literal `count` of shares[s_start + p] * values[v_start + p width + d].

    d is below `width`, a multiple of 16; `shares` and `out` are float32.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        given, stored = args[0], args[2]
        sums_at = args[5]
        positions = range(count.literal_value)
        factors = [_splat(builder, builder.load(_at(builder, given, args[1], p), align=4)) for p in positions]

        def body(k: Any, carried: list[Any]) -> list[Any]:
            d = builder.mul(k, ir.Constant(k.type, LANES))
            sums = _zeros(min(4, len(factors)))
            for p in positions:
                row = builder.add(args[3], builder.mul(args[4], ir.Constant(args[4].type, p)))
                term = _load(builder, values, stored, builder.add(row, d), 0)
                sums[p % 4] = _add_product(builder, sums[p % 4], factors[p], term)
            at = builder.add(args[6], d)
            total = _load(builder, out, sums_at, at, 0)
            for part in sums:
                total = builder.fadd(total, part, flags=FLAGS)
            _store(builder, out, total, sums_at, at, 0)
            return []

        _loop(builder, builder.sdiv(args[4], ir.Constant(args[4].type, LANES)), [], body)
        return context.get_dummy_value()

    index = types.intp
    return types.none(shares, index, values, index, index, out, index, count), generate


def _reduce(name: str) -> Callable[[Any, Any], Any]:
    def emit(builder: Any, vector: Any) -> Any:
        if name == "fmax":
            return _call(builder, "llvm.vector.reduce.fmax.v16f32", _FLOAT, vector)
        function = _declare(builder.module, ir.FunctionType(_FLOAT, [_FLOAT, _WIDE]), "llvm.vector.reduce.fadd.v16f32")
        return builder.call(function, [ir.Constant(_FLOAT, 0.0), vector], fastmath=FLAGS)

    return emit


@_vectorised
def strip_largest(typing: Any, scores: Any, start: Any) -> Any:
    """The largest of 16 float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = _load(builder, scores, args[0], args[1], 0)
        return _reduce("fmax")(builder, vector)

    return types.float32(scores, types.intp), generate


@_vectorised
def strip_exp(typing: Any, scores: Any, start: Any, largest: Any) -> Any:
    """Replaces 16 float32 by e to the power of (score - largest); returns their sum."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = args[0]
        vector = _load(builder, scores, data, args[1], 0)
        vector = _exp(builder, builder.fsub(vector, _splat(builder, args[2]), flags=FLAGS))
        _store(builder, scores, vector, data, args[1], 0)
        return _reduce("fadd")(builder, vector)

    return types.float32(scores, types.intp, types.float32), generate


@_vectorised
def fetch(typing: Any, array: Any, start: Any, count: Any) -> Any:
    """Has `count` numbers of an array from `start` on (at least 1) brought into the cache, without waiting."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        per_line = 32 if _is_narrow(array) else 16
        octet = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [octet, _INT, _INT, _INT])
        prefetch = _declare(builder.module, kind, "llvm.prefetch.p0")
        how = [ir.Constant(_INT, value) for value in (0, 3, 1)]
        lines = builder.sdiv(
            builder.add(args[2], ir.Constant(args[2].type, per_line - 1)), ir.Constant(args[2].type, per_line)
        )

        def body(k: Any, carried: list[Any]) -> list[Any]:
            at = builder.add(args[1], builder.mul(k, ir.Constant(k.type, per_line)))
            builder.call(prefetch, [builder.bitcast(builder.gep(args[0], [at]), octet), *how])
            return []

        _loop(builder, lines, [], body)
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp), generate


# ---- single numbers -------------------------------------------------------------------------------------------------


@_vectorised
def put(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index] = value, a float32, rounded to bfloat16 where the array holds that."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = builder.gep(args[0], [args[1]])
        if not _is_narrow(array):
            builder.store(args[2], address)
            return context.get_dummy_value()
        bits = builder.bitcast(args[2], _INT)
        sixteen = ir.Constant(_INT, 16)
        odd = builder.and_(builder.lshr(bits, sixteen), ir.Constant(_INT, 1))
        bits = builder.add(bits, builder.add(odd, ir.Constant(_INT, 0x7FFF)))
        builder.store(builder.trunc(builder.lshr(bits, sixteen), ir.IntType(16)), address)
        return context.get_dummy_value()

    return types.none(array, types.intp, types.float32), generate


@_vectorised
def get(typing: Any, array: Any, index: Any) -> Any:
    """array[index] as float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.load(builder.gep(args[0], [args[1]]))
        if not _is_narrow(array):
            return value
        return builder.bitcast(builder.shl(builder.zext(value, _INT), ir.Constant(_INT, 16)), _FLOAT)

    return types.float32(array, types.intp), generate


# ---- pointers -------------------------------------------------------------------------------------------------------


def _pointer_to(kind: Any) -> Callable[..., Any]:
    def typed(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(_pointer(kind)))

        return _pointer(kind)(types.uint64), generate

    return _vectorised(typed)


floats = _pointer_to(types.float32)
"""A pointer to float32 from an address. The others likewise."""
ints = _pointer_to(types.int32)
longs = _pointer_to(types.int64)
octets = _pointer_to(types.uint8)


@_vectorised
def stored(typing: Any, address: Any, like: Any) -> Any:
    """A pointer to numbers of the type of `like`: float32, or bfloat16 as uint16."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(_pointer(like)))

    return _pointer(like)(types.uint64, like), generate


@_vectorised
def is_narrow(typing: Any, like: Any) -> Any:
    """Whether numbers of the type of `like` are bfloat16; known when the call is compiled."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_constant(types.boolean, like == types.uint16)

    return types.boolean(like), generate


@_vectorised
def call_task(typing: Any, address: Any, c: Any, task: Any, worker: Any) -> Any:
    """Calls a C function (record, task, worker) at an address.

    Through an address, because what one Numba function calls is compiled once more with it.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [args[1].type, number, number])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.none(types.uint64, c, types.int64, types.int64), generate
