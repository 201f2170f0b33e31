"""The work of a tick in tasks that any worker can do, and phases of them.

A phase is one kind of work over all rows of a batch. Its parameters are in the shared array behind JOB: kind, rows,
and what the kind needs. No task reads what another of its phase writes.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding

from runtime.backend.native.activations import gate_block
from runtime.backend.native.attention import attend
from runtime.backend.native.crew import JOB, call_task, claim, finish, publish, rest, wait_for
from runtime.backend.native.intrinsics import VECTOR, jit
from runtime.backend.native.number_formats import floats, is_narrow, longs, octets, stored
from runtime.backend.native.products import PANEL, ROWS, matrix_tile
from runtime.backend.native.rows import do_row
from runtime.backend.native.sampling import sample_row
from runtime.backend.native.structure import GELU, GELU_TANH

SAMPLE, ATTEND = range(13, 15)
"""Kinds of work besides those on single rows, which are in `runtime.backend.native.rows`."""
QKV, OUT, GATE, DOWN, ADAPT, HEAD = range(16, 22)
"""Matrix products."""

_PAIRED = bool(binding.get_host_cpu_features().get("avx512bf16"))
_tile = matrix_tile(False, _PAIRED)
_gated_tile = matrix_tile(True, _PAIRED)
_silu_block, _gelu_block, _gelu_tanh_block = gate_block("silu"), gate_block("gelu"), gate_block("gelu_tanh")

_WORTH_SHARING = 1 << 18
"""Multiplications below which a phase is done faster than helpers come to it."""
_ROW_TASKS = 4
"""Tasks for each worker that a phase is split into, so that one who comes late finds some."""


@jit
def _gate(buffers: Any, worker: Any, layer: Any, panel: Any, i: Any, rows: Any) -> None:
    """From a worker's tile of gates and what they gate to `gated`, from row i on."""
    half = PANEL // 2
    sums, bias, gated = floats(buffers.tile), floats(buffers.gate_bias), stored(buffers.gated, buffers.kind)
    bias_at = layer * 2 * buffers.gate_stride + panel * PANEL
    for row in range(rows):
        start, out = (worker * ROWS + row) * PANEL, (i + row) * buffers.gate_stride + panel * half
        for c in range(0, half, VECTOR):
            if buffers.activation == GELU_TANH:
                _gelu_tanh_block(sums, start + c, bias, bias_at + c, half, gated, out + c)
            elif buffers.activation == GELU:
                _gelu_block(sums, start + c, bias, bias_at + c, half, gated, out + c)
            else:
                _silu_block(sums, start + c, bias, bias_at + c, half, gated, out + c)


@jit
def _product(buffers: Any, kind: Any, task: Any, worker: Any) -> None:
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
    adds = kind == ADAPT
    if kind in (OUT, DOWN):
        adds = buffers.apart == 0
        if not adds:
            out = floats(buffers.made)
    elif kind == QKV:
        out, width = floats(buffers.qkv), buffers.qkv_stride
    elif kind == HEAD:
        out, width = floats(buffers.logits), buffers.logits_stride
    i = first
    while i < last:
        # Rows are shared out evenly over the tiles that are needed.
        tiles = (last - i + ROWS - 1) // ROWS
        rows = (last - i + tiles - 1) // tiles
        if kind == GATE and buffers.is_plain_gate != 0:
            gated, at = stored(buffers.gated, buffers.kind), i * buffers.gate_stride + panel * PANEL // 2
            _gated_tile(acts, i * stride, stride, weights, w, inner, gated, at, buffers.gate_stride, rows, False)
        else:
            at = i * width + panel * PANEL
            if kind == GATE:
                out, width, at = floats(buffers.tile), PANEL, worker * ROWS * PANEL
            _tile(acts, i * stride, stride, weights, w, inner, out, at, width, rows, adds)
            if kind == GATE:
                _gate(buffers, worker, job[JOB + 2] // 4, panel, i, rows)
        i += rows


@jit
def do_task(buffers: Any, task: Any, worker: Any) -> None:
    """Does one task of the phase that is on."""
    job = longs(buffers.shared)
    kind, n, block = job[JOB], job[JOB + 1], job[JOB + 5]
    if kind >= QKV:
        _product(buffers, kind, task, worker)
        return
    first = task * block
    for i in range(first, min(n, first + block)):
        if kind == ATTEND:
            attend(buffers, i, n, worker, job[JOB + 2], job[JOB + 3], job[JOB + 4])
        elif kind == SAMPLE:
            sample_row(buffers, i)
        else:
            do_row(buffers, kind, i)


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
