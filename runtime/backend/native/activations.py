"""What gates and soft caps do to blocks of 16 numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from runtime.backend.native.intrinsics import (
    FLAGS,
    FLOAT_VECTOR,
    VECTOR,
    add_product,
    call,
    exponential,
    intrinsic,
    load,
    splat,
    store,
)
from runtime.model.specification import Activation

_TANH = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
"""Of x^11, x^9, ... x^3 below 0.625 (Cephes)."""
_ERROR = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
"""Of t^5, ... t in the error function (Abramowitz and Stegun, 7.1.26)."""


def _constant(value: float) -> Any:
    return ir.Constant(FLOAT_VECTOR, [value] * VECTOR)


def _times(builder: Any, *factors: Any) -> Any:
    product = factors[0]
    for factor in factors[1:]:
        product = builder.fmul(product, factor, flags=FLAGS)
    return product


def _polynomial(builder: Any, x: Any, coefficients: tuple[float, ...]) -> Any:
    """Highest power first, the last that of 1."""
    total = _constant(coefficients[0])
    for coefficient in coefficients[1:]:
        total = add_product(builder, _constant(coefficient), total, x)
    return total


def _magnitude(builder: Any, x: Any) -> Any:
    return call(builder, "llvm.fabs.v16f32", FLOAT_VECTOR, x)


def _over_one_plus_exponential(builder: Any, top: Any, x: Any) -> Any:
    """top / (1 + e^x)."""
    bottom = builder.fadd(exponential(builder, x), _constant(1.0), flags=FLAGS)
    return builder.fdiv(top, bottom, flags=FLAGS)


def silu(builder: Any, x: Any) -> Any:
    return _over_one_plus_exponential(builder, x, builder.fneg(x))


def gelu(builder: Any, x: Any) -> Any:
    """x times the normal distribution up to x, to about 1e-7 of x."""
    size = _magnitude(builder, x)
    half_square = _times(builder, x, x, _constant(-0.5))
    slope = add_product(builder, _constant(1.0), _constant(0.3275911 * 0.5**0.5), size)
    t = builder.fdiv(_constant(1.0), slope, flags=FLAGS)
    beyond = _times(builder, _polynomial(builder, t, _ERROR), t, exponential(builder, half_square), _constant(0.5))
    below = builder.fsub(_constant(1.0), beyond, flags=FLAGS)
    share = builder.select(builder.fcmp_ordered("<", x, _constant(0.0)), beyond, below)
    return _times(builder, x, share)


def gelu_tanh(builder: Any, x: Any) -> Any:
    """0.5 x (1 + tanh u) is x / (1 + e^-2u)."""
    inner = add_product(builder, _constant(1.0), _constant(0.044715), _times(builder, x, x))
    return _over_one_plus_exponential(builder, x, _times(builder, x, inner, _constant(-2 * 0.7978845608028654)))


def _tanh(builder: Any, x: Any) -> Any:
    square = _times(builder, x, x)
    small = add_product(builder, x, _times(builder, x, square), _polynomial(builder, square, _TANH))
    large = _over_one_plus_exponential(builder, _constant(-2.0), _times(builder, x, _constant(2.0)))
    large = builder.fadd(large, _constant(1.0), flags=FLAGS)
    is_small = builder.fcmp_ordered("<", _magnitude(builder, x), _constant(0.625))
    return builder.select(is_small, small, large)


_FUNCTIONS: dict[Activation, Callable[[Any, Any], Any]] = {"silu": silu, "gelu": gelu, "gelu_tanh": gelu_tanh}


def gate_block(activation: Activation) -> Callable[..., Any]:
    """An intrinsic (sums, s_start, bias, b_start, apart, out, o_start): out[o_start + c] = activation of the gate times
    what it gates, c below 16.

    The gate is sums[s_start + c] + bias[b_start + c]; what it gates lies `apart` numbers on in both.
    """
    function = _FUNCTIONS[activation]

    def typed(typing: Any, sums: Any, s_start: Any, bias: Any, b_start: Any, apart: Any, out: Any, o_start: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            def biased(distance: Any) -> Any:
                starts = [builder.add(start, distance) for start in (args[1], args[3])]
                parts = [
                    load(builder, kind, data, start, 0)
                    for kind, data, start in zip((sums, bias), (args[0], args[2]), starts, strict=True)
                ]
                return builder.fadd(*parts, flags=FLAGS)

            gate, up = biased(ir.Constant(args[4].type, 0)), biased(args[4])
            store(builder, out, _times(builder, function(builder, gate), up), args[5], args[6], 0)
            return context.get_dummy_value()

        index = types.intp
        return types.none(sums, index, bias, index, index, out, index), generate

    return intrinsic(typed)


@intrinsic
def cap_block(typing: Any, numbers: Any, start: Any, cap: Any) -> Any:
    """Replaces 16 float32 x by cap * tanh(x / cap)."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector, bound = load(builder, numbers, args[0], args[1], 0), splat(builder, args[2])
        capped = _times(builder, _tanh(builder, builder.fdiv(vector, bound, flags=FLAGS)), bound)
        store(builder, numbers, capped, args[0], args[1], 0)
        return context.get_dummy_value()

    return types.none(numbers, types.intp, types.float32), generate
