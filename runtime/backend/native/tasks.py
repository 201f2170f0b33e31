"""The work of a tick in tasks that any worker can do, and phases of them.

A phase is one kind of work over all rows of a batch. Its parameters are in the shared array behind JOB: kind, rows,
and what the kind needs. No task reads what another of its phase writes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import binding

from runtime.backend.native.attention import attend, rotate_and_write, settle
from runtime.backend.native.crew import JOB, call_task, claim, finish, publish, rest, wait_for
from runtime.backend.native.criteria import LATENT_DIFF
from runtime.backend.native.intrinsics import jit
from runtime.backend.native.number_formats import floats, get, ints, is_narrow, longs, octets, put, stored
from runtime.backend.native.products import PANEL, ROWS, matrix_tile
from runtime.backend.native.sampling import sample_row

EMBED, KEEP, GATHER, TAKE, STATE, FINAL, NORMS, CHOOSE = range(8)
"""Kinds of work on single rows: see `_row`."""
ROTATE, SETTLE, EXIT, SAMPLE, ATTEND = range(8, 13)
QKV, OUT, GATE, DOWN, ADAPT, HEAD = range(16, 22)
"""Matrix products."""
NONE = -1

_PAIRED = bool(binding.get_host_cpu_features().get("avx512bf16"))
_tile = matrix_tile(False, _PAIRED)
_gated_tile = matrix_tile(True, _PAIRED)

_WORTH_SHARING = 1 << 18
"""Multiplications below which a phase is done faster than helpers come to it."""
_ROW_TASKS = 4
"""Tasks for each worker that a phase is split into, so that one who comes late finds some."""


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
def _row(buffers: Any, kind: Any, i: Any) -> None:
    """One row of a phase over rows."""
    width = buffers.width
    x, at = floats(buffers.x), i * buffers.stride
    hidden, hidden_at = stored(buffers.hidden, buffers.kind), i * buffers.hidden_stride
    final_norm = 4 * buffers.layers
    job = longs(buffers.shared)
    if kind == CHOOSE:
        _normalise(buffers, x, longs(buffers.chosen)[i] * buffers.stride, final_norm, hidden, hidden_at)
        return
    lane = longs(buffers.batch)[i]
    state, embedded, of_lane = floats(buffers.state), floats(buffers.embedded), lane * width
    if kind == EMBED:
        table, start = stored(buffers.table, buffers.kind), longs(buffers.token)[lane] * width
        scale = np.float32(buffers.embedding_scale)
        for d in range(width):
            x[at + d] = get(table, start + d) * scale
    elif kind == KEEP:
        for d in range(width):
            embedded[of_lane + d] = x[at + d]
    elif kind == GATHER:
        bias = floats(buffers.adapter_bias)
        for d in range(width):
            put(hidden, hidden_at + d, state[of_lane + d])
            put(hidden, hidden_at + width + d, embedded[of_lane + d])
            x[at + d] = bias[d]
    elif kind == TAKE:
        for d in range(width):
            x[at + d] = embedded[of_lane + d]
    elif kind == STATE:
        for d in range(width):
            state[of_lane + d] = x[at + d]
    elif kind == FINAL:
        if buffers.adapts:
            _normalise(buffers, state, of_lane, final_norm, x, at)
        else:
            for d in range(width):
                x[at + d] = state[of_lane + d]
    elif kind == NORMS:
        within, onward = job[JOB + 2], job[JOB + 3]
        if within != NONE:
            _normalise(buffers, x, at, within, x, at)
        if onward != NONE:
            _normalise(buffers, x, at, onward, hidden, hidden_at)
    elif kind == ROTATE:
        rotate_and_write(buffers, i, lane, job[JOB + 2], job[JOB + 3], job[JOB + 4])
    elif kind == SETTLE:
        settle(buffers, lane)
    elif kind == EXIT:
        _measure(buffers, lane)


@jit
def _measure(buffers: Any, lane: Any) -> None:
    """What the lane's criterion measures: the relative change of its latent state since its last test, or the cosine
    distance; see `runtime.backend.native.criteria`."""
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
def _product(buffers: Any, kind: Any, task: Any) -> None:
    """One panel of a matrix product over a block of rows."""
    job, matrices = longs(buffers.shared), longs(buffers.matrices)
    n, matrix, block = job[JOB + 1], 3 * job[JOB + 2], job[JOB + 3]
    start, inner, panels = matrices[matrix], matrices[matrix + 1], matrices[matrix + 2]
    panel, first = task % panels, task // panels * block
    last = min(n, first + block)
    weights = stored(buffers.weights, buffers.kind)
    w = start + panel * PANEL * (inner + (inner % 2) * is_narrow(buffers.kind))
    acts, stride = stored(buffers.hidden, buffers.kind), buffers.hidden_stride
    if kind == OUT:
        acts, stride = stored(buffers.attended, buffers.kind), buffers.attended_stride
    elif kind == DOWN:
        acts, stride = stored(buffers.gated, buffers.kind), buffers.gate_stride
    out, width = floats(buffers.x), buffers.stride
    if kind == QKV:
        out, width = floats(buffers.qkv), buffers.qkv_stride
    elif kind == HEAD:
        out, width = floats(buffers.logits), buffers.logits_stride
    adds = kind in (OUT, DOWN, ADAPT)
    i = first
    while i < last:
        # Rows are shared out evenly over the tiles that are needed.
        tiles = (last - i + ROWS - 1) // ROWS
        rows = (last - i + tiles - 1) // tiles
        if kind == GATE:
            gated, at = stored(buffers.gated, buffers.kind), i * buffers.gate_stride + panel * PANEL // 2
            _gated_tile(acts, i * stride, stride, weights, w, inner, gated, at, buffers.gate_stride, rows, False)
        else:
            at = i * width + panel * PANEL
            _tile(acts, i * stride, stride, weights, w, inner, out, at, width, rows, adds)
        i += rows


@jit
def do_task(buffers: Any, task: Any, worker: Any) -> None:
    """Does one task of the phase that is on."""
    job = longs(buffers.shared)
    kind, n, block = job[JOB], job[JOB + 1], job[JOB + 5]
    if kind >= QKV:
        _product(buffers, kind, task)
        return
    first = task * block
    for i in range(first, min(n, first + block)):
        if kind == ATTEND:
            attend(buffers, i, n, worker, job[JOB + 3], job[JOB + 4])
        elif kind == SAMPLE:
            sample_row(buffers, i)
        else:
            _row(buffers, kind, i)


@jit
def _share(buffers: Any, count: Any, cost: Any) -> None:
    """Does the tasks of the phase described behind JOB; `cost` in multiplications."""
    if buffers.workers == 1 or count == 1 or cost < _WORTH_SHARING:
        for task in range(count):
            call_task(buffers.do_task, buffers, task, 0)
        return
    shared = longs(buffers.shared)
    publish(shared, octets(buffers.semaphore), count)
    task = claim(shared)
    while task >= 0:
        call_task(buffers.do_task, buffers, task, 0)
        finish(shared)
        task = claim(shared)
    wait_for(shared, count)


@jit
def over_rows(buffers: Any, kind: Any, n: Any, a: Any, b: Any, d: Any, cost: Any) -> None:
    """A phase over n rows; a, b and d are the kind's own, `cost` is that of a row in multiplications."""
    if n == 0:
        return
    block = (n + buffers.workers * _ROW_TASKS - 1) // (buffers.workers * _ROW_TASKS)
    job = longs(buffers.shared)
    job[JOB], job[JOB + 1], job[JOB + 2], job[JOB + 3], job[JOB + 4], job[JOB + 5] = kind, n, a, b, d, block
    _share(buffers, (n + block - 1) // block, n * cost)


@jit
def multiply(buffers: Any, kind: Any, n: Any, matrix: Any) -> None:
    """A matrix product over n rows."""
    if n == 0:
        return
    inner, panels = longs(buffers.matrices)[3 * matrix + 1], longs(buffers.matrices)[3 * matrix + 2]
    job = longs(buffers.shared)
    # Panels are what workers share; only where there are few of them, rows are as well.
    blocks = 1
    while blocks * panels < 2 * buffers.workers and n > 2 * ROWS * blocks:
        blocks *= 2
    block = (n + blocks - 1) // blocks
    blocks = (n + block - 1) // block
    job[JOB], job[JOB + 1], job[JOB + 2], job[JOB + 3] = kind, n, matrix, block
    _share(buffers, panels * blocks, n * inner * panels * PANEL)


@jit
def help_out(buffers: Any, worker: Any) -> None:
    """What a helper does until the crew is stopped."""
    shared, semaphore = longs(buffers.shared), octets(buffers.semaphore)
    idle = 0
    while idle >= 0:
        task = claim(shared)
        if task >= 0:
            call_task(buffers.do_task, buffers, task, worker)
            finish(shared)
            idle = 0
        else:
            idle = rest(shared, semaphore, idle)
