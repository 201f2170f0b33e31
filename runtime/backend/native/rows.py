"""Work on single rows of a batch: norms, and what is kept of a lane between ticks.

A half of a layer, attention or MLP, is numbered through all layers: 2 layer + (0 or 1).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from runtime.backend.native.activations import cap_block
from runtime.backend.native.attention import rotate_and_write, settle
from runtime.backend.native.crew import JOB
from runtime.backend.native.criteria import GATE, LATENT_DIFF
from runtime.backend.native.intrinsics import VECTOR, jit, jit_as_written
from runtime.backend.native.number_formats import floats, get, ints, longs, octets, put, stored
from runtime.backend.native.structure import STATE

EMBED, KEEP, GATHER, TAKE, STORE, FINAL, NORMS, CHOOSE, CAP = range(9)
"""Kinds of work on single rows: see `do_row`."""
ROTATE, SETTLE, EXIT, JUDGE = range(9, 13)
NONE = -1


@jit
def _normalise(buffers: Any, source: Any, at: Any, norm: Any, out: Any, out_at: Any) -> None:
    """RMSNorm of a row of floats; `norm` numbers the weights."""
    width, weight = buffers.width, norm * buffers.width
    norms = floats(buffers.norms)
    total = np.float32(0.0)
    for d in range(width):
        total += source[at + d] * source[at + d]
    scale = np.float32(1.0 / math.sqrt(total / width + buffers.eps))
    for d in range(width):
        put(out, out_at + d, source[at + d] * scale * norms[weight + d])


@jit
def _norm_or_copy(buffers: Any, source: Any, at: Any, is_normed: Any, norm: Any, out: Any, out_at: Any) -> None:
    if is_normed != 0:
        _normalise(buffers, source, at, norm, out, out_at)
    else:
        for d in range(buffers.width):
            put(out, out_at + d, source[at + d])


@jit
def _add_made(buffers: Any, at: Any, half: Any) -> None:
    """Adds what a half has made of a row to the row, after its bias, its norm and its scale."""
    x, made, bias = floats(buffers.x), floats(buffers.made), floats(buffers.half_bias)
    biased, scale = half * buffers.width, np.float32(buffers.residual_scale)
    for d in range(buffers.width):
        made[at + d] += bias[biased + d]
    if buffers.norms_branch != 0:
        _normalise(buffers, made, at, 3 * half + 1, made, at)
    for d in range(buffers.width):
        x[at + d] += made[at + d] * scale


@jit
def do_row(buffers: Any, kind: Any, i: Any) -> None:
    """One row of a phase over rows."""
    job = longs(buffers.shared)
    if kind == CAP:
        _cap(buffers, i)
        return
    width = buffers.width
    x, at = floats(buffers.x), i * buffers.stride
    hidden, hidden_at = stored(buffers.hidden, buffers.kind), i * buffers.hidden_stride
    final_norm = 6 * buffers.layers
    if kind == CHOOSE:
        chosen = longs(buffers.chosen)[i] * buffers.stride
        _norm_or_copy(buffers, x, chosen, buffers.norms_head, final_norm, hidden, hidden_at)
        return
    lane = longs(buffers.batch)[i]
    state, embedded, of_lane = floats(buffers.state), floats(buffers.embedded), lane * width
    if kind == EMBED:
        table, start = stored(buffers.table, buffers.kind), longs(buffers.token)[lane] * width
        scale = np.float32(buffers.embedding_scale)
        for d in range(width):
            x[at + d] = get(table, start + d) * scale
    elif kind == KEEP:
        _keep(buffers, at, lane)
    elif kind == GATHER:
        bias = floats(buffers.adapter_bias)
        for d in range(width):
            put(hidden, hidden_at + d, state[of_lane + d])
            put(hidden, hidden_at + width + d, embedded[of_lane + d])
            x[at + d] = bias[d]
    elif kind == TAKE:
        source = state if buffers.injection == STATE else embedded
        for d in range(width):
            x[at + d] = source[of_lane + d]
    elif kind == STORE:
        _norm_or_copy(buffers, x, at, buffers.norms_iterations, final_norm, state, of_lane)
    elif kind == FINAL:
        _norm_or_copy(buffers, state, of_lane, buffers.norms_coda, final_norm, x, at)
    elif kind == NORMS:
        made, onward = job[JOB + 2], job[JOB + 3]
        if made != NONE:
            if buffers.apart != 0:
                _add_made(buffers, at, made)
            if buffers.norms_total != 0:
                _normalise(buffers, x, at, 3 * made + 2, x, at)
        if onward != NONE:
            _norm_or_copy(buffers, x, at, buffers.norms_before, 3 * onward, hidden, hidden_at)
    elif kind == ROTATE:
        rotate_and_write(buffers, i, lane, job[JOB + 2], job[JOB + 3], job[JOB + 4])
    elif kind == SETTLE:
        settle(buffers, lane)
    elif kind == EXIT:
        _measure(buffers, lane)
    elif kind == JUDGE:
        _judge(buffers, lane)
        if job[JOB + 2] != 0:
            _add_gate(buffers, lane)


@jit
def _cap(buffers: Any, i: Any) -> None:
    """Scales row i of the logits, and caps it."""
    logits, start, end = floats(buffers.logits), i * buffers.logits_stride, (i + 1) * buffers.logits_stride
    scale, cap = np.float32(buffers.logits_scale), np.float32(buffers.logits_softcap)
    for v in range(start, end):
        logits[v] *= scale
    if cap > 0:
        for block in range(start, end, VECTOR):
            cap_block(logits, block, cap)


@jit
def _keep(buffers: Any, at: Any, lane: Any) -> None:
    """Keeps what every iteration is given; the latent state may start as that."""
    x, embedded, of_lane = floats(buffers.x), floats(buffers.embedded), lane * buffers.width
    for d in range(buffers.width):
        embedded[of_lane + d] = x[at + d]
    if octets(buffers.starts_embedded)[lane] != 0:
        state, remembered = floats(buffers.state), floats(buffers.remembered)
        for d in range(buffers.width):
            state[of_lane + d] = x[at + d]
            remembered[of_lane + d] = x[at + d]


@jit
def _measure(buffers: Any, lane: Any) -> None:
    """What the lane's criterion measures: the relative change of its latent state since its last test, the cosine
    distance, or how likely it is to have exited; see `runtime.backend.native.criteria`."""
    if ints(buffers.criterion)[lane] == GATE:
        floats(buffers.exit_value)[lane] = floats(buffers.exit_probability)[lane]
        return
    remembered, state = floats(buffers.remembered), floats(buffers.state)
    change, before, after, product = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for d in range(lane * buffers.width, (lane + 1) * buffers.width):
        old, new = remembered[d], state[d]
        change += (new - old) * (new - old)
        before += old * old
        after += new * new
        product += old * new
        remembered[d] = new
    if ints(buffers.criterion)[lane] == LATENT_DIFF:
        floats(buffers.exit_value)[lane] = math.sqrt(change) / math.sqrt(after)
    else:
        floats(buffers.exit_value)[lane] = np.float32(1.0) - product / math.sqrt(after) / math.sqrt(before)


@jit
def _judge(buffers: Any, lane: Any) -> None:
    """What the exit gate says of the lane's latent state."""
    state, gate, at = floats(buffers.state), floats(buffers.exit_gate), lane * buffers.width
    total = np.float32(0.0)
    for d in range(buffers.width):
        total += state[at + d] * gate[d]
    total += gate[buffers.width]
    floats(buffers.gate)[lane] = np.float32(1.0) / (np.float32(1.0) + math.exp(-total))


@jit_as_written
def _add_gate(buffers: Any, lane: Any) -> None:
    """As `GateSums.add`, rounding where it does."""
    gate, probability, going_on = floats(buffers.gate), floats(buffers.exit_probability), floats(buffers.going_on)
    exits = gate[lane] * going_on[lane]
    probability[lane] += exits
    going_on[lane] *= np.float32(1.0) - gate[lane]
