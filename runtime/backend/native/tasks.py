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
from runtime.backend.native.crew import JOB, claim, finish, publish, rest, wait_for
from runtime.backend.native.intrinsics import compiled
from runtime.backend.native.number_formats import call_task, floats, get, ints, is_narrow, longs, octets, put, stored
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


@compiled
def _normalise(c: Any, source: Any, at: Any, norm: Any, out: Any, out_at: Any) -> None:
    """RMSNorm of a row of floats; `norm` numbers the weights."""
    width, weight = c.width, norm * c.width
    norms = floats(c.norms)
    total = np.float32(0.0)
    for d in range(width):
        total += source[at + d] * source[at + d]
    scale = np.float32(1.0 / math.sqrt(total / width + c.eps))
    for d in range(width):
        put(out, out_at + d, source[at + d] * scale * norms[weight + d])


@compiled
def _row(c: Any, kind: Any, i: Any) -> None:
    """One row of a phase over rows."""
    width = c.width
    x, at = floats(c.x), i * c.stride
    hidden, hidden_at = stored(c.hidden, c.kind), i * c.hidden_stride
    final_norm = 4 * c.layers
    job = longs(c.shared)
    if kind == CHOOSE:
        _normalise(c, x, longs(c.chosen)[i] * c.stride, final_norm, hidden, hidden_at)
        return
    lane = longs(c.batch)[i]
    state, embedded, of_lane = floats(c.state), floats(c.embedded), lane * width
    if kind == EMBED:
        table, start, scale = stored(c.table, c.kind), longs(c.token)[lane] * width, np.float32(c.embedding_scale)
        for d in range(width):
            x[at + d] = get(table, start + d) * scale
    elif kind == KEEP:
        for d in range(width):
            embedded[of_lane + d] = x[at + d]
    elif kind == GATHER:
        bias = floats(c.adapter_bias)
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
        if c.adapts:
            _normalise(c, state, of_lane, final_norm, x, at)
        else:
            for d in range(width):
                x[at + d] = state[of_lane + d]
    elif kind == NORMS:
        within, onward = job[JOB + 2], job[JOB + 3]
        if within != NONE:
            _normalise(c, x, at, within, x, at)
        if onward != NONE:
            _normalise(c, x, at, onward, hidden, hidden_at)
    elif kind == ROTATE:
        rotate_and_write(c, i, lane, job[JOB + 2], job[JOB + 3], job[JOB + 4])
    elif kind == SETTLE:
        settle(c, lane)
    elif kind == EXIT:
        _measure(c, lane)


@compiled
def _measure(c: Any, lane: Any) -> None:
    """What the lane's criterion measures: 1 is the relative change of the latent state, 2 its cosine distance."""
    remembered, state = floats(c.remembered), floats(c.state)
    change, before, after, product = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for d in range(lane * c.width, (lane + 1) * c.width):
        old, new = remembered[d], state[d]
        change += (new - old) * (new - old)
        before += old * old
        after += new * new
        product += old * new
        remembered[d] = new
    if ints(c.criterion)[lane] == 1:
        floats(c.exit_value)[lane] = math.sqrt(change) / math.sqrt(after)
    else:
        floats(c.exit_value)[lane] = np.float32(1.0) - product / math.sqrt(after) / math.sqrt(before)


@compiled
def _product(c: Any, kind: Any, task: Any) -> None:
    """One panel of a matrix product over a block of rows."""
    job, matrices = longs(c.shared), longs(c.matrices)
    n, matrix, block = job[JOB + 1], 3 * job[JOB + 2], job[JOB + 3]
    start, inner, panels = matrices[matrix], matrices[matrix + 1], matrices[matrix + 2]
    panel, first = task % panels, task // panels * block
    last = min(n, first + block)
    weights, w = stored(c.weights, c.kind), start + panel * PANEL * (inner + (inner % 2) * is_narrow(c.kind))
    acts, stride = stored(c.hidden, c.kind), c.hidden_stride
    if kind == OUT:
        acts, stride = stored(c.attended, c.kind), c.attended_stride
    elif kind == DOWN:
        acts, stride = stored(c.gated, c.kind), c.gate_stride
    out, width = floats(c.x), c.stride
    if kind == QKV:
        out, width = floats(c.qkv), c.qkv_stride
    elif kind == HEAD:
        out, width = floats(c.logits), c.logits_stride
    adds = kind in (OUT, DOWN, ADAPT)
    i = first
    while i < last:
        # Rows are shared out evenly over the tiles that are needed.
        tiles = (last - i + ROWS - 1) // ROWS
        rows = (last - i + tiles - 1) // tiles
        if kind == GATE:
            gated, at = stored(c.gated, c.kind), i * c.gate_stride + panel * PANEL // 2
            _gated_tile(acts, i * stride, stride, weights, w, inner, gated, at, c.gate_stride, rows, False)
        else:
            at = i * width + panel * PANEL
            _tile(acts, i * stride, stride, weights, w, inner, out, at, width, rows, adds)
        i += rows


@compiled
def do_task(c: Any, task: Any, worker: Any) -> None:
    """Does one task of the phase that is on."""
    job = longs(c.shared)
    kind, n, block = job[JOB], job[JOB + 1], job[JOB + 5]
    if kind >= QKV:
        _product(c, kind, task)
        return
    first = task * block
    for i in range(first, min(n, first + block)):
        if kind == ATTEND:
            attend(c, i, n, worker, job[JOB + 3], job[JOB + 4])
        elif kind == SAMPLE:
            sample_row(c, i)
        else:
            _row(c, kind, i)


@compiled
def _share(c: Any, count: Any, cost: Any) -> None:
    """Does the tasks of the phase described behind JOB; `cost` in multiplications."""
    if c.workers == 1 or count == 1 or cost < _WORTH_SHARING:
        for task in range(count):
            call_task(c.do_task, c, task, 0)
        return
    shared = longs(c.shared)
    publish(shared, octets(c.semaphore), count)
    task = claim(shared)
    while task >= 0:
        call_task(c.do_task, c, task, 0)
        finish(shared)
        task = claim(shared)
    wait_for(shared, count)


@compiled
def over_rows(c: Any, kind: Any, n: Any, a: Any, b: Any, d: Any, cost: Any) -> None:
    """A phase over n rows; a, b and d are the kind's own, `cost` is that of a row in multiplications."""
    if n == 0:
        return
    block = (n + c.workers * _ROW_TASKS - 1) // (c.workers * _ROW_TASKS)
    job = longs(c.shared)
    job[JOB], job[JOB + 1], job[JOB + 2], job[JOB + 3], job[JOB + 4], job[JOB + 5] = kind, n, a, b, d, block
    _share(c, (n + block - 1) // block, n * cost)


@compiled
def multiply(c: Any, kind: Any, n: Any, matrix: Any) -> None:
    """A matrix product over n rows."""
    if n == 0:
        return
    inner, panels = longs(c.matrices)[3 * matrix + 1], longs(c.matrices)[3 * matrix + 2]
    job = longs(c.shared)
    # Panels are what workers share; only where there are few of them, rows are as well.
    blocks = 1
    while blocks * panels < 2 * c.workers and n > 2 * ROWS * blocks:
        blocks *= 2
    block = (n + blocks - 1) // blocks
    blocks = (n + block - 1) // block
    job[JOB], job[JOB + 1], job[JOB + 2], job[JOB + 3] = kind, n, matrix, block
    _share(c, panels * blocks, n * inner * panels * PANEL)


@compiled
def help_out(c: Any, worker: Any) -> None:
    """What a helper does until the crew is stopped."""
    shared, semaphore = longs(c.shared), octets(c.semaphore)
    idle = 0
    while idle >= 0:
        task = claim(shared)
        if task >= 0:
            call_task(c.do_task, c, task, worker)
            finish(shared)
            idle = 0
        else:
            idle = rest(shared, semaphore, idle)
