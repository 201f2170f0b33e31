"""Attention in place over paged memory, and what is written there.

A page of one column and one head is a block of strips of 16 positions. In a strip, keys lie dimension by dimension, so
that one vector instruction multiplies 16 positions; values lie position by position. Iteration r writes slot
(r - 1) mod slots; once a token has left, its last entry is copied into the slots that it never came to, so that every
reader at slot s finds in slot s what lookup "latest" asks for: the entry of iteration min(s + 1, depth).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from runtime.backend.native.intrinsics import LANES, compiled
from runtime.backend.native.key_blocks import fetch, strip_exp, strip_largest, strip_scores, strip_values
from runtime.backend.native.number_formats import floats, ints, longs, put, stored


@compiled
def _block(c: Any, column: Any, page: Any, head: Any) -> Any:
    """Number of the first strip of a page's block."""
    return ((column * c.pages + page) * c.kv_heads + head) * c.strips


@compiled
def rotate_and_write(c: Any, i: Any, lane: Any, layer: Any, column: Any, slots: Any) -> None:
    """Biases, rotates and scales the query of row i in `qkv`; rotates its key and writes it and its value to memory.

    `column` is the layer's first, `slots` how many it owns.
    """
    column += ints(c.age)[lane] % slots
    heads, width = c.heads, c.head_dim
    keys, values = stored(c.keys, c.kind), stored(c.values, c.kind)
    qkv, bias = floats(c.qkv), floats(c.query_key_bias)
    rotation, turn = floats(c.rotation), ints(c.position)[lane] * width
    bias_at = layer * (heads + c.kv_heads) * width
    scale = np.float32(1.0 / math.sqrt(width))
    page, offset = longs(c.cell)[lane] // c.page_size, longs(c.cell)[lane] % c.page_size
    strip, place = offset // LANES, offset % LANES
    for head in range(heads + c.kv_heads):
        at, biased = i * c.qkv_stride + head * width, bias_at + head * width
        is_query = head < heads
        factor = scale if is_query else np.float32(1.0)
        k = 0
        if not is_query:
            k = (_block(c, column, page, head - heads) + strip) * width * LANES + place
        for j in range(0, width, 2):
            cosine, sine = rotation[turn + j] * factor, rotation[turn + j + 1] * factor
            even, odd = qkv[at + j] + bias[biased + j], qkv[at + j + 1] + bias[biased + j + 1]
            first, second = even * cosine - odd * sine, odd * cosine + even * sine
            if is_query:
                qkv[at + j] = first
                qkv[at + j + 1] = second
            else:
                put(keys, k + j * LANES, first)
                put(keys, k + (j + 1) * LANES, second)
    for head in range(c.kv_heads):
        at = i * c.qkv_stride + (heads + c.kv_heads + head) * width
        v = ((_block(c, column, page, head) + strip) * LANES + place) * c.head_room
        for d in range(width):
            put(values, v + d, qkv[at + d])


@compiled
def pages_of(c: Any, lane: Any) -> Any:
    """Pages that a lane's token sees."""
    return ints(c.position)[lane] // c.page_size + 1


@compiled
def attend(c: Any, item: Any, items: Any, worker: Any, column: Any, slots: Any) -> None:
    """Attention of one row of the batch over one head of keys and values: all query heads that share it.

    While one pass computes, what the next one reads is on its way: the values, then the keys of the next item.
    """
    rows = items // c.kv_heads
    i, kv_head = item // c.kv_heads, item % c.kv_heads
    lane = longs(c.batch)[i]
    column += ints(c.age)[lane] % slots
    length = ints(c.position)[lane] + 1
    table, pages_at = ints(c.page_table), ints(c.row)[lane] * c.pages_per_row
    group = c.heads // c.kv_heads
    keys, values, attended = stored(c.keys, c.kind), stored(c.values, c.kind), stored(c.attended, c.kind)
    qkv, scores, sums = floats(c.qkv), floats(c.scores), floats(c.sums)
    scores_at, sums_at = worker * c.scores_stride, worker * c.head_room
    pages = pages_of(c, lane)
    next_pages, next_at, next_head = pages, pages_at, kv_head + 1
    if next_head == c.kv_heads:
        follower = longs(c.batch)[min(i + 1, rows - 1)]
        next_pages, next_at, next_head = pages_of(c, follower), ints(c.row)[follower] * c.pages_per_row, 0
    for head in range(kv_head * group, (kv_head + 1) * group):
        query = i * c.qkv_stride + head * c.head_dim
        largest = np.float32(-np.inf)
        at = scores_at
        for number in range(pages):
            left = min(c.page_size, length - number * c.page_size)
            block = _block(c, column, table[pages_at + number], kv_head)
            for strip in range((left + LANES - 1) // LANES):
                k = (block + strip) * c.head_dim * LANES
                fetch(values, (block + strip) * LANES * c.head_room, LANES * c.head_room)
                strip_scores(qkv, query, keys, k, c.head_dim, scores, at)
                for p in range(left - strip * LANES, LANES):
                    scores[at + p] = -np.inf
                largest = max(largest, strip_largest(scores, at))
                at += LANES
        total = np.float32(0.0)
        for start in range(scores_at, at, LANES):
            total += strip_exp(scores, start, largest)
        for d in range(c.head_room):
            sums[sums_at + d] = np.float32(0.0)
        at = scores_at
        for number in range(pages):
            left = min(c.page_size, length - number * c.page_size)
            block = _block(c, column, table[pages_at + number], kv_head)
            if number < next_pages:
                start = _block(c, column, table[next_at + number], next_head) * c.head_dim * LANES
                fetch(keys, start, c.strips * c.head_dim * LANES)
            for strip in range((left + LANES - 1) // LANES):
                v = (block + strip) * LANES * c.head_room
                count = left - strip * LANES
                if count >= LANES:
                    strip_values(scores, at, values, v, c.head_room, sums, sums_at, 16)
                else:
                    for p in range(count):
                        strip_values(scores, at + p, values, v + p * c.head_room, c.head_room, sums, sums_at, 1)
                at += LANES
        inverse = np.float32(1.0) / total
        out = i * c.attended_stride + head * c.head_dim
        for d in range(c.head_dim):
            put(attended, out + d, sums[sums_at + d] * inverse)


@compiled
def settle(c: Any, lane: Any) -> None:
    """Copies the last entry of a token that has done its iterations into the slots that it never came to."""
    depth = min(ints(c.age)[lane], ints(c.bound)[lane])
    page, offset = longs(c.cell)[lane] // c.page_size, longs(c.cell)[lane] % c.page_size
    strip, place = offset // LANES, offset % LANES
    width, room = c.head_dim, c.head_room
    keys, values = stored(c.keys, c.kind), stored(c.values, c.kind)
    for layer in range(c.core_layers):
        column = c.prelude_layers + layer * c.slots
        for head in range(c.kv_heads):
            last = _block(c, column + depth - 1, page, head) + strip
            for slot in range(depth, c.slots):
                to = _block(c, column + slot, page, head) + strip
                for d in range(width):
                    keys[(to * width + d) * LANES + place] = keys[(last * width + d) * LANES + place]
                for d in range(room):
                    values[(to * LANES + place) * room + d] = values[(last * LANES + place) * room + d]
