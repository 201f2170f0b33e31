"""The paged attention kernels in Triton; importing this needs Triton, compiling waits for the first launch.

Whether they run compiled or in Triton's interpreter is settled by `TRITON_INTERPRET` when this is imported.

Nothing is planned on the host: grids follow from shapes alone, and programs find out from the queries on the device
whether there is anything for them to do. So a launch can be captured in a CUDA graph and replayed over other queries.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


def _store(
    key: tl.tensor,
    value: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    page_table: tl.tensor,
    rows: tl.tensor,
    positions: tl.tensor,
    slots: tl.tensor,
    column: tl.tensor,
    pages: tl.tensor,
    pages_per_row: tl.tensor,
    key_stride: tl.tensor,
    key_head_stride: tl.tensor,
    value_stride: tl.tensor,
    value_head_stride: tl.tensor,
    page_size: tl.constexpr,
    kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
) -> None:
    """Program (query, kv head): its key and value go to memory, which has their dtype."""
    query = tl.program_id(0)
    head = tl.program_id(1)
    row = tl.load(rows + query).to(tl.int64)
    position = tl.load(positions + query)
    page = tl.load(page_table + row * pages_per_row + position // page_size).to(tl.int64)
    cell = ((column + tl.load(slots + query)).to(tl.int64) * pages + page) * page_size + position % page_size
    dim = tl.arange(0, padded_dim)
    inside = dim < head_dim
    there = (cell * kv_heads + head) * head_dim + dim
    own_key = tl.load(key + query.to(tl.int64) * key_stride + head * key_head_stride + dim, mask=inside)
    tl.store(keys + there, own_key, mask=inside)
    own_value = tl.load(value + query.to(tl.int64) * value_stride + head * value_head_stride + dim, mask=inside)
    tl.store(values + there, own_value, mask=inside)


def _attend(
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    depths: tl.tensor,
    page_table: tl.tensor,
    rows: tl.tensor,
    positions: tl.tensor,
    slots: tl.tensor,
    out: tl.tensor,
    partial: tl.tensor,
    weights: tl.tensor,
    scale: tl.tensor,
    count: tl.tensor,
    column: tl.tensor,
    pages: tl.tensor,
    pages_per_row: tl.tensor,
    splits: tl.tensor,
    query_stride: tl.tensor,
    query_head_stride: tl.tensor,
    column_slots: tl.constexpr,
    page_size: tl.constexpr,
    kv_heads: tl.constexpr,
    group: tl.constexpr,
    padded_group: tl.constexpr,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    tile: tl.constexpr,
    block: tl.constexpr,
    split: tl.constexpr,
    single: tl.constexpr,
    precision: tl.constexpr,
) -> None:
    """Program (query, kv head, split of the context): a tile of queries over one stretch of their common context.

    A tile is a run of neighbouring queries with row and slot in common, cut where the index is a multiple of `tile`.
    Its first query's program does the work for all of it; the others have nothing to do. With `single` the attended
    values go to `out`, else unnormalised ones to `partial` [n, heads, splits, head_dim] and their maximum and sum of
    weights to `weights` [n, heads, splits, 2].
    """
    first = tl.program_id(0)
    kv_head = tl.program_id(1)
    part = tl.program_id(2)
    row = tl.load(rows + first)
    slot = tl.load(slots + first)
    within = first % tile
    before = first - tl.where(within > 0, 1, 0)
    continues = (within > 0) & (tl.load(rows + before) == row) & (tl.load(slots + before) == slot)
    if continues:
        return

    # A row of the tile is one head of one query: the heads that share keys and values are side by side.
    line = tl.arange(0, tile * padded_group)
    at = first + line // padded_group
    here = (line // padded_group < tile - within) & (at < count)
    # Where another run comes between two of the same, the second is done twice, to the same end.
    member = (tl.load(rows + at, mask=here, other=-1) == row) & (tl.load(slots + at, mask=here, other=-1) == slot)
    position = tl.load(positions + at, mask=member, other=-1)
    length = tl.max(position, 0) + 1
    start = part * split
    if start >= length:
        return
    end = tl.minimum(length, start + split)

    member = member & (line % padded_group < group)
    head = kv_head * group + line % padded_group
    dim = tl.arange(0, padded_dim)
    inside = dim < head_dim
    own = query + at.to(tl.int64)[:, None] * query_stride + head[:, None] * query_head_stride + dim[None, :]
    asked = tl.load(own, mask=member[:, None] & inside[None, :], other=0.0).to(tl.float32) * scale

    largest = tl.full([tile * padded_group], float("-inf"), tl.float32)
    total = tl.zeros([tile * padded_group], tl.float32)
    attended = tl.zeros([tile * padded_group, padded_dim], tl.float32)
    table = page_table + row.to(tl.int64) * pages_per_row
    for base in range(start, end, block):
        seen = base + tl.arange(0, block)
        known = seen < end
        page = tl.load(table + seen // page_size, mask=known, other=0).to(tl.int64)
        place = page * page_size + seen % page_size
        read = tl.zeros([block], tl.int32)
        if column_slots > 1:
            depth = tl.load(depths + place, mask=known, other=1)
            read = tl.maximum(tl.minimum(slot, depth - 1), 0)
        cell = (column + read).to(tl.int64) * (pages * page_size) + place
        entry = ((cell * kv_heads + kv_head) * head_dim)[:, None] + dim[None, :]
        usable = known[:, None] & inside[None, :]
        key = tl.load(keys + entry, mask=usable, other=0.0).to(tl.float32)
        value = tl.load(values + entry, mask=usable, other=0.0).to(tl.float32)

        score = tl.dot(asked, tl.trans(key), input_precision=precision)
        score = tl.where(known[None, :] & (seen[None, :] <= position[:, None]), score, float("-inf"))
        highest = tl.maximum(largest, tl.max(score, 1))
        # A shorter query of the tile may have seen nothing of this split; its sums stay 0, and nobody reads them.
        shift = tl.where(highest == float("-inf"), 0.0, highest)
        weight = tl.exp(score - shift[:, None])
        fade = tl.exp(largest - shift)
        total = total * fade + tl.sum(weight, 1)
        attended = attended * fade[:, None] + tl.dot(weight, value, input_precision=precision)
        largest = highest

    result = at.to(tl.int64) * (kv_heads * group) + head
    if single:
        # Members have seen at least themselves; the other rows divide by 0 unless told not to.
        attended = attended / tl.where(member, total, 1.0)[:, None]
        there = out + result[:, None] * head_dim + dim[None, :]
        tl.store(there, attended.to(out.dtype.element_ty), mask=member[:, None] & inside[None, :])
    else:
        result = result * splits + part
        tl.store(partial + result[:, None] * head_dim + dim[None, :], attended, mask=member[:, None] & inside[None, :])
        tl.store(weights + result * 2, largest, mask=member)
        tl.store(weights + result * 2 + 1, total, mask=member)


def _combine(
    partial: tl.tensor,
    weights: tl.tensor,
    positions: tl.tensor,
    out: tl.tensor,
    heads: tl.tensor,
    splits: tl.tensor,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    split: tl.constexpr,
    most_splits: tl.constexpr,
) -> None:
    """Program (query, head): puts together what `_attend` found in each split of the query's context."""
    query = tl.program_id(0)
    head = tl.program_id(1)
    used = tl.load(positions + query) // split + 1
    part = tl.arange(0, most_splits)
    known = part < used
    result = query.to(tl.int64) * heads + head
    stored = result * splits + part
    largest = tl.load(weights + stored * 2, mask=known, other=float("-inf"))
    total = tl.load(weights + stored * 2 + 1, mask=known, other=0.0)
    fade = tl.exp(largest - tl.max(largest, 0))
    dim = tl.arange(0, padded_dim)
    inside = dim < head_dim
    usable = known[:, None] & inside[None, :]
    attended = tl.load(partial + stored[:, None] * head_dim + dim[None, :], mask=usable, other=0.0)
    attended = tl.sum(attended * fade[:, None], 0) / tl.sum(total * fade, 0)
    tl.store(out + result * head_dim + dim, attended.to(out.dtype.element_ty), mask=inside)


# Numbers that differ from call to call must not make for a kernel of their own.
store: Any = triton.jit(_store, do_not_specialize=["column"])
attend: Any = triton.jit(_attend, do_not_specialize=["count", "column", "splits"])
combine: Any = triton.jit(_combine, do_not_specialize=["splits"])
