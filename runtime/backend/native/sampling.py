"""Greedy tokens and plain temperature, natively; samplings with filters go through `runtime.backend.sampler`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from runtime.backend.native.intrinsics import VECTOR, jit
from runtime.backend.native.key_blocks import block_exponentials, block_largest
from runtime.backend.native.number_formats import floats, ints, longs, octets

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_FACTOR = np.uint64(0x94D049BB133111EB)


@jit
def _mix(z: Any) -> Any:
    z = (z ^ (z >> np.uint64(30))) * _FIRST_FACTOR
    z = (z ^ (z >> np.uint64(27))) * _SECOND_FACTOR
    return z ^ (z >> np.uint64(31))


@jit
def uniform(key: Any, position: Any) -> Any:
    """The draw that `runtime.backend.randomness.uniforms` gives for the sampling stream: float32 in (0, 1)."""
    by_stream = _mix(np.uint64(key) + _GOLDEN)
    by_position = _mix(by_stream + np.uint64(position + 1) * _GOLDEN)
    word = _mix(by_position + _GOLDEN)
    return (np.float32(word >> np.uint64(41)) + np.float32(0.5)) * np.float32(2.0**-23)


@jit
def sample_row(buffers: Any, j: Any) -> None:
    """Chooses a token from row j of `logits`, that of lane batch[chosen[j]]; leaves the row as weights.

    The same rules as in `runtime.backend.sampler`: no token that the lane's mask forbids; ties for the lowest id; else
    the first token at which the running sum exceeds uniform * total; a log-probability of NaN where the logits are not
    all finite.
    """
    lane = longs(buffers.batch)[longs(buffers.chosen)[j]]
    row, start, end = floats(buffers.logits), j * buffers.logits_stride, (j + 1) * buffers.logits_stride
    vocab_end = start + buffers.vocab
    nothing = np.float32(0.0)
    for v in range(start, vocab_end):
        # NaN once a logit is not finite, and from then on.
        nothing += np.float32(0.0) * row[v]
    for v in range(vocab_end, end):
        row[v] = -np.inf
    if octets(buffers.is_masked)[lane] != 0:
        _drop_others(row, start, buffers.vocab, ints(buffers.allowed), lane * buffers.mask_words)
    temperature = floats(buffers.temperature)[lane]
    if temperature > 0:
        # The largest goes first, so that tiny temperatures do not overflow.
        largest = _largest(row, start, end)
        for v in range(start, vocab_end):
            row[v] = (row[v] - largest) / temperature
    largest = _largest(row, start, end)
    at = start
    while at < vocab_end - 1 and not row[at] >= largest:
        at += 1
    total = np.float32(0.0)
    for block in range(start, end, VECTOR):
        total += block_exponentials(row, block, largest)
    if temperature > 0:
        at = _draw(row, start, vocab_end, uniform(longs(buffers.sampling_key)[lane], ints(buffers.position)[lane]))
    ints(buffers.drawn_token)[j] = at - start
    floats(buffers.drawn_logprob)[j] = math.log(row[at] / total) + nothing


@jit
def _drop_others(row: Any, start: Any, vocab: Any, allowed: Any, words: Any) -> None:
    """Minus infinity for every token whose bit in `allowed`, from `words` on, is 0."""
    for v in range(vocab):
        if (allowed[words + (v >> 5)] >> np.int32(v & 31)) & np.int32(1) == 0:
            row[start + v] = -np.inf


@jit
def _largest(row: Any, start: Any, end: Any) -> Any:
    largest = block_largest(row, start)
    for block in range(start + VECTOR, end, VECTOR):
        largest = max(largest, block_largest(row, block))
    return largest


@jit
def _draw(weights: Any, start: Any, end: Any, drawn: Any) -> Any:
    total = 0.0
    for v in range(start, end):
        total += np.float64(weights[v])
    target = min(np.float64(drawn) * total, np.nextafter(total, 0.0))
    running = 0.0
    last = start
    for v in range(start, end):
        running += np.float64(weights[v])
        if running > target:
            return v
        if weights[v] > 0:
            last = v
    return last
