"""Attention in place over the paged cache, and what is written there.

A page of one column and one head is a run of blocks of 16 positions. In a block, keys lie dimension by dimension, so
that one vector instruction multiplies 16 positions; values lie position by position. Iteration r writes slot
(r - 1) mod slots; once a token has left, its last keys and values are copied into the slots that it never came to, so
that every reader at slot s finds in slot s what lookup "latest" asks for: those of iteration min(s + 1, depth).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from runtime.backend.native.activations import cap_block
from runtime.backend.native.intrinsics import VECTOR, jit
from runtime.backend.native.key_blocks import block_exponentials, block_largest, block_scores, block_values, fetch
from runtime.backend.native.number_formats import floats, ints, longs, octets, put, stored
from runtime.backend.native.structure import BY_HEAD, NO_NORM

ROTATION, APART, WINDOW = range(3)
"""Columns of `layer_table`."""


@jit
def _first_block(buffers: Any, column: Any, page: Any, head: Any) -> Any:
    """Number of a page's first block of 16 positions."""
    return ((column * buffers.pages + page) * buffers.kv_heads + head) * buffers.blocks_per_page


@jit
def _norm_part(buffers: Any, at: Any, weight: Any, count: Any) -> None:
    """RMSNorm of `count` numbers of `qkv` from `at` on, with the weights of `query_key_norms` from `weight` on."""
    qkv, norms = floats(buffers.qkv), floats(buffers.query_key_norms)
    total = np.float32(0.0)
    for d in range(count):
        total += qkv[at + d] * qkv[at + d]
    scale = np.float32(1.0 / math.sqrt(total / count + buffers.eps))
    for d in range(count):
        qkv[at + d] *= scale * norms[weight + d]


@jit
def _bias_and_norm(buffers: Any, i: Any, layer: Any) -> None:
    """Adds biases to row i of `qkv`, then norms its queries and keys."""
    qkv, start, width = floats(buffers.qkv), i * buffers.qkv_stride, buffers.head_dim
    if buffers.has_projection_bias != 0:
        count = (buffers.heads + 2 * buffers.kv_heads) * width
        bias, bias_at = floats(buffers.projection_bias), layer * count
        for d in range(count):
            qkv[start + d] += bias[bias_at + d]
    if buffers.query_key_norm == NO_NORM:
        return
    heads = buffers.heads + buffers.kv_heads
    weight = layer * heads * width
    if buffers.query_key_norm == BY_HEAD:
        for at in range(0, heads * width, width):
            _norm_part(buffers, start + at, weight + at, width)
    else:
        queries = buffers.heads * width
        _norm_part(buffers, start, weight, queries)
        _norm_part(buffers, start + queries, weight + queries, buffers.kv_heads * width)


@jit
def rotate_and_write(buffers: Any, i: Any, lane: Any, layer: Any, column: Any, slots: Any) -> None:
    """Biases, norms, rotates and scales the query of row i in `qkv`; likewise its key, but for the scale, and writes it
    and its value to the cache.

    `column` is the layer's first, `slots` how many it owns.
    """
    column += ints(buffers.age)[lane] % slots
    heads, width = buffers.heads, buffers.head_dim
    keys, values = stored(buffers.keys, buffers.kind), stored(buffers.values, buffers.kind)
    qkv, table = floats(buffers.qkv), longs(buffers.layer_table)
    _bias_and_norm(buffers, i, layer)
    rotation = floats(buffers.rotation)
    position = np.int64(ints(buffers.position)[lane])
    if octets(buffers.is_long)[lane] != 0:
        position += buffers.short_context
    turn = table[3 * layer + ROTATION] + position * table[3 * layer + APART]
    scale = np.float32(buffers.attention_scale)
    page, offset = longs(buffers.cell)[lane] // buffers.page_size, longs(buffers.cell)[lane] % buffers.page_size
    block, place = offset // VECTOR, offset % VECTOR
    for head in range(heads + buffers.kv_heads):
        at = i * buffers.qkv_stride + head * width
        is_query = head < heads
        factor = scale if is_query else np.float32(1.0)
        k = 0
        if not is_query:
            k = (_first_block(buffers, column, page, head - heads) + block) * width * VECTOR + place
        for j in range(0, width, 2):
            cosine, sine = rotation[turn + j] * factor, rotation[turn + j + 1] * factor
            even, odd = qkv[at + j], qkv[at + j + 1]
            first, second = even * cosine - odd * sine, odd * cosine + even * sine
            if is_query:
                qkv[at + j] = first
                qkv[at + j + 1] = second
            else:
                put(keys, k + j * VECTOR, first)
                put(keys, k + (j + 1) * VECTOR, second)
    for head in range(buffers.kv_heads):
        at = i * buffers.qkv_stride + (heads + buffers.kv_heads + head) * width
        v = ((_first_block(buffers, column, page, head) + block) * VECTOR + place) * buffers.head_room
        for d in range(width):
            put(values, v + d, qkv[at + d])


@jit
def _least_seen(buffers: Any, lane: Any, layer: Any) -> Any:
    """The first position that a lane's token sees, or less."""
    return ints(buffers.position)[lane] + 1 - longs(buffers.layer_table)[3 * layer + WINDOW]


@jit
def _first_page(buffers: Any, lane: Any, layer: Any) -> Any:
    """The first page of its row that a lane's token may see."""
    if octets(buffers.has_holes)[ints(buffers.row)[lane]] != 0:
        return np.int64(0)
    return np.int64(max(0, _least_seen(buffers, lane, layer)) // buffers.page_size)


@jit
def _pages_of(buffers: Any, lane: Any) -> Any:
    """Pages up to the place of a lane's token."""
    return ints(buffers.place)[lane] // buffers.page_size + 1


@jit
def _part_seen(buffers: Any, lane: Any, number: Any, least: Any) -> Any:
    """What a lane's token sees of a page of its row, given the least position that it sees: the first offset, and the
    one after the last."""
    before = number * buffers.page_size
    row, left = ints(buffers.row)[lane], ints(buffers.place)[lane] + 1 - before
    if octets(buffers.has_holes)[row] != 0:
        parts, at = ints(buffers.page_parts), 3 * (row * buffers.pages_per_row + number)
        return max(np.int64(parts[at]), least - parts[at + 2]), min(np.int64(parts[at + 1]), left)
    return max(np.int64(0), least - before), min(buffers.page_size, left)


@jit
def attend(buffers: Any, item: Any, items: Any, worker: Any, layer: Any, column: Any, slots: Any) -> None:
    """Attention of one row of the batch over one head of keys and values: all query heads that share it.

    While one pass computes, what the next one reads is on its way: the values, then the keys of the next item.
    """
    rows = items // buffers.kv_heads
    i, kv_head = item // buffers.kv_heads, item % buffers.kv_heads
    lane = longs(buffers.batch)[i]
    column += ints(buffers.age)[lane] % slots
    least = _least_seen(buffers, lane, layer)
    table, pages_at = ints(buffers.page_table), ints(buffers.row)[lane] * buffers.pages_per_row
    group = buffers.heads // buffers.kv_heads
    room = buffers.head_room
    keys, values = stored(buffers.keys, buffers.kind), stored(buffers.values, buffers.kind)
    attended = stored(buffers.attended, buffers.kind)
    qkv, scores, sums = floats(buffers.qkv), floats(buffers.scores), floats(buffers.sums)
    cap = np.float32(buffers.attention_softcap)
    scores_at, sums_at = worker * buffers.scores_stride, worker * room
    pages, first_page = _pages_of(buffers, lane), _first_page(buffers, lane, layer)
    follower, next_head = lane, kv_head + 1
    if next_head == buffers.kv_heads:
        follower, next_head = longs(buffers.batch)[min(i + 1, rows - 1)], 0
    next_at = ints(buffers.row)[follower] * buffers.pages_per_row
    next_pages, ahead = _pages_of(buffers, follower), _first_page(buffers, follower, layer) - first_page
    for head in range(kv_head * group, (kv_head + 1) * group):
        query = i * buffers.qkv_stride + head * buffers.head_dim
        largest = np.float32(-np.inf)
        at = scores_at
        for number in range(first_page, pages):
            # What is not seen is passed over, in whole blocks; what is left of it in the first one is masked.
            unseen, left = _part_seen(buffers, lane, number, least)
            first = _first_block(buffers, column, table[pages_at + number], kv_head)
            for block in range(unseen // VECTOR, (left + VECTOR - 1) // VECTOR):
                k = (first + block) * buffers.head_dim * VECTOR
                fetch(values, (first + block) * VECTOR * room, VECTOR * room)
                block_scores(qkv, query, keys, k, buffers.head_dim, scores, at)
                if cap > 0:
                    cap_block(scores, at, cap)
                for p in range(unseen - block * VECTOR):
                    scores[at + p] = -np.inf
                for p in range(left - block * VECTOR, VECTOR):
                    scores[at + p] = -np.inf
                largest = max(largest, block_largest(scores, at))
                at += VECTOR
        total = np.float32(0.0)
        for start in range(scores_at, at, VECTOR):
            total += block_exponentials(scores, start, largest)
        for d in range(room):
            sums[sums_at + d] = np.float32(0.0)
        at = scores_at
        for number in range(first_page, pages):
            unseen, left = _part_seen(buffers, lane, number, least)
            first = _first_block(buffers, column, table[pages_at + number], kv_head)
            if number + ahead < next_pages:
                page = table[next_at + number + ahead]
                start = _first_block(buffers, column, page, next_head) * buffers.head_dim * VECTOR
                fetch(keys, start, buffers.blocks_per_page * buffers.head_dim * VECTOR)
            for block in range(unseen // VECTOR, (left + VECTOR - 1) // VECTOR):
                v = (first + block) * VECTOR * room
                begin, count = max(0, unseen - block * VECTOR), left - block * VECTOR
                if begin == 0 and count >= VECTOR:
                    block_values(scores, at, values, v, room, sums, sums_at, 16)
                else:
                    for p in range(begin, min(count, VECTOR)):
                        block_values(scores, at + p, values, v + p * room, room, sums, sums_at, 1)
                at += VECTOR
        inverse = np.float32(1.0) / total
        out = i * buffers.attended_stride + head * buffers.head_dim
        for d in range(buffers.head_dim):
            put(attended, out + d, sums[sums_at + d] * inverse)


@jit
def settle(buffers: Any, lane: Any) -> None:
    """Copies the last keys and values of a token that has done its iterations into the slots that it never came to."""
    depth = min(ints(buffers.age)[lane], ints(buffers.bound)[lane])
    page, offset = longs(buffers.cell)[lane] // buffers.page_size, longs(buffers.cell)[lane] % buffers.page_size
    block, place = offset // VECTOR, offset % VECTOR
    width, room = buffers.head_dim, buffers.head_room
    keys, values = stored(buffers.keys, buffers.kind), stored(buffers.values, buffers.kind)
    for layer in range(buffers.core_layers):
        column = buffers.prelude_layers + layer * buffers.slots
        for head in range(buffers.kv_heads):
            last = _first_block(buffers, column + depth - 1, page, head) + block
            for slot in range(depth, buffers.slots):
                to = _first_block(buffers, column + slot, page, head) + block
                for d in range(width):
                    keys[(to * width + d) * VECTOR + place] = keys[(last * width + d) * VECTOR + place]
                for d in range(room):
                    values[(to * VECTOR + place) * room + d] = values[(last * VECTOR + place) * room + d]
