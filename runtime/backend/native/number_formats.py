"""The formats that numbers are stored in, single ones and pointers to many, for native functions written in Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from runtime.backend.native.intrinsics import FLOAT, INT, intrinsic, is_bfloat, pointer


@intrinsic
def put(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index] = value, a float32, rounded to bfloat16 where the array holds that."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = builder.gep(args[0], [args[1]])
        if not is_bfloat(array):
            builder.store(args[2], address)
            return context.get_dummy_value()
        bits = builder.bitcast(args[2], INT)
        sixteen = ir.Constant(INT, 16)
        odd = builder.and_(builder.lshr(bits, sixteen), ir.Constant(INT, 1))
        bits = builder.add(bits, builder.add(odd, ir.Constant(INT, 0x7FFF)))
        builder.store(builder.trunc(builder.lshr(bits, sixteen), ir.IntType(16)), address)
        return context.get_dummy_value()

    return types.none(array, types.intp, types.float32), generate


@intrinsic
def get(typing: Any, array: Any, index: Any) -> Any:
    """array[index] as float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.load(builder.gep(args[0], [args[1]]))
        if not is_bfloat(array):
            return value
        return builder.bitcast(builder.shl(builder.zext(value, INT), ir.Constant(INT, 16)), FLOAT)

    return types.float32(array, types.intp), generate


def _pointer_to(kind: Any) -> Callable[..., Any]:
    def typed(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(pointer(kind)))

        return pointer(kind)(types.uint64), generate

    return intrinsic(typed)


floats = _pointer_to(types.float32)
"""A pointer to float32 from an address. The others likewise."""
ints = _pointer_to(types.int32)
longs = _pointer_to(types.int64)
octets = _pointer_to(types.uint8)


@intrinsic
def stored(typing: Any, address: Any, like: Any) -> Any:
    """A pointer to numbers of the type of `like`: float32, or bfloat16 as uint16."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(pointer(like)))

    return pointer(like)(types.uint64, like), generate


@intrinsic
def is_narrow(typing: Any, like: Any) -> Any:
    """Whether numbers of the type of `like` are bfloat16; known when the call is compiled."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_constant(types.boolean, like == types.uint16)

    return types.boolean(like), generate
