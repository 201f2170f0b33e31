"""Counter-based randomness: every draw is a pure function of (thread key, position, stream, index).

There is no generator state, so what a thread draws does not depend on who shares its batch, on the order of ticks, or
on the device. The integer arithmetic is SplitMix64's (Steele, Lea and Flood, 2014) modulo 2**64, on int64 tensors:

    mix(z)  = finaliser of SplitMix64
    a       = mix(key + (stream + 1) * GOLDEN)
    b       = mix(a + (position + 1) * GOLDEN)
    word(i) = mix(b + (i + 1) * GOLDEN)
    uniform(i) = ((word(i) >> 41) + 1/2) / 2**23          (logical shift)
"""

from __future__ import annotations

import math
from hashlib import blake2b

import torch
from torch import Tensor

SAMPLING_STREAM = 0
NOISE_STREAM = 1

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST_FACTOR = 0xBF58476D1CE4E5B9 - 2**64
_SECOND_FACTOR = 0x94D049BB133111EB - 2**64

_UNIFORM_BITS = 23
"""One fewer than a float32's significand: k + 1/2 is then exact, and 0 and 1 are never drawn."""

_CUT = 3.0
"""Latent noise is cut at this many standard deviations, as in the reference."""


def thread_key(seed: int, path: tuple[int, ...]) -> int:
    """Random key of a thread: signed 64 bits, the same in every process."""
    name = f"{seed}:{'.'.join(map(str, path))}"
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)


def uniforms(key: Tensor, position: Tensor, count: int, stream: int) -> Tensor:
    """`count` independent draws for each row: [n, count] float32, uniform over (0, 1), both ends excluded.

    `key` and `position` are [n] int64 on one device, where the result is too; equal values on every device.
    """
    words = _words(key, position, count, stream)
    drawn = _shift_right(words, 64 - _UNIFORM_BITS).to(torch.float32)
    return (drawn + 0.5) * 2.0**-_UNIFORM_BITS


def initial_noise(key: Tensor, position: Tensor, width: int, std: float) -> Tensor:
    """Initial latent states of n tokens: [n, width] float32, normal with `std` before it is cut at 3 `std`.

    The distribution is the reference's `trunc_normal_(0, std, -3 std, 3 std)`; the draws are this module's. On
    different devices values may differ in their last bits, which the inverse error function computes.
    """
    reach = math.erf(_CUT / math.sqrt(2))
    drawn = uniforms(key, position, width, NOISE_STREAM)
    normal = torch.special.erfinv(drawn.mul_(2).sub_(1).mul_(reach)).mul_(math.sqrt(2))
    noise: Tensor = normal.clamp_(-_CUT, _CUT).mul_(std)
    return noise


def _words(key: Tensor, position: Tensor, count: int, stream: int) -> Tensor:
    """[n, count] int64, all 64 bits random."""
    by_stream = _mix(key + _wrapped((stream + 1) * _GOLDEN))
    by_position = _mix(by_stream + (position + 1) * _GOLDEN)
    index = torch.arange(1, count + 1, dtype=torch.int64, device=key.device)
    return _mix(by_position[:, None] + (index * _GOLDEN)[None, :])


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, a bijection of 64-bit words. int64 products and sums wrap around."""
    z = (z ^ _shift_right(z, 30)) * _FIRST_FACTOR
    z = (z ^ _shift_right(z, 27)) * _SECOND_FACTOR
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift: int64's own is arithmetic, so the sign's copies are masked away."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _wrapped(value: int) -> int:
    """The signed 64-bit integer congruent to `value`."""
    return (value + 2**63) % 2**64 - 2**63
