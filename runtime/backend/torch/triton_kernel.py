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
    """Program (query, kv head): its key and value go to the cache, which has their dtype."""
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


def _begins_tile(rows: tl.tensor, slots: tl.tensor, query: tl.tensor, tile: tl.constexpr) -> Any:
    """Whether a query is the first of its tile.

    A tile is a run of neighbouring queries with row and slot in common, cut where the index is a multiple of `tile`.
    """
    within = query % tile
    before = query - tl.where(within > 0, 1, 0)
    is_alike = (tl.load(rows + before) == tl.load(rows + query)) & (tl.load(slots + before) == tl.load(slots + query))
    return (within == 0) | (is_alike == 0)


def _tile_rows(
    rows: tl.tensor,
    slots: tl.tensor,
    first: tl.tensor,
    kv_head: tl.tensor,
    group: tl.constexpr,
    padded_group: tl.constexpr,
    tile: tl.constexpr,
) -> Any:
    """The query and the head of each row of the tile that begins at query `first`, and whether there is such a row.

    A row is one head of one query: the heads that share keys and values are side by side.
    """
    line = tl.arange(0, tile * padded_group)
    at, head = first + line // padded_group, line % padded_group
    here = (at - first < tile - first % tile) & (at < tl.num_programs(0))
    # Where another run comes between two of the same, the second is done twice, to the same end.
    row, slot = tl.load(rows + at, mask=here, other=-1), tl.load(slots + at, mask=here, other=-1)
    member = (row == tl.load(rows + first)) & (slot == tl.load(slots + first)) & (head < group)
    return at, kv_head * group + head, member


def _cells(
    depths: tl.tensor,
    table: tl.tensor,
    slot: tl.tensor,
    seen: tl.tensor,
    known: tl.tensor,
    column: tl.tensor,
    pages: tl.tensor,
    column_slots: tl.constexpr,
    page_size: tl.constexpr,
) -> Any:
    """Where in the cache, counted in positions of all columns, a query in `slot` finds the positions `seen`."""
    page = tl.load(table + seen // page_size, mask=known, other=0).to(tl.int64)
    place = page * page_size + seen % page_size
    read = tl.zeros_like(seen)
    if column_slots > 1:
        depth = tl.load(depths + place, mask=known, other=1)
        read = tl.maximum(tl.minimum(slot, depth - 1), 0)
    return (column + read).to(tl.int64) * (pages * page_size) + place


def _counting(
    page_parts: tl.tensor,
    has_holes: tl.tensor,
    row: tl.tensor,
    pages_per_row: tl.tensor,
    seen: tl.tensor,
    known: tl.tensor,
    page_size: tl.constexpr,
) -> Any:
    """Which of the `known` places `seen` of a row are in none of its holes; what is in them may be no number at all, so
    that it must not even be loaded to be weighted by 0."""
    part = page_parts + (row * pages_per_row + seen // page_size) * 3
    offset = seen % page_size
    asked = known & (tl.load(has_holes + row) != 0)
    begin = tl.load(part, mask=asked, other=0)
    end = tl.load(part + 1, mask=asked, other=page_size)
    return known & (begin <= offset) & (offset < end)


def _nothing_attended(lines: tl.constexpr, padded_dim: tl.constexpr) -> Any:
    """A softmax, one row a line, before its first position; see `_fold`."""
    empty = tl.zeros([lines], tl.float32)
    return empty - float("inf"), empty, tl.zeros([lines, padded_dim], tl.float32)


def _fold(
    score: tl.tensor,
    value: tl.tensor,
    largest: tl.tensor,
    total: tl.tensor,
    attended: tl.tensor,
    precision: tl.constexpr,
) -> Any:
    """Adds positions to a softmax under way: its largest score, its sum of weights and that of weighted values."""
    highest = tl.maximum(largest, tl.max(score, 1))
    # A shorter query of the tile may have seen nothing of this split; its sums stay 0, and nobody reads them.
    shift = tl.where(highest == float("-inf"), 0.0, highest)
    weight = tl.exp(score - shift[:, None])
    fade = tl.exp(largest - shift)
    total = total * fade + tl.sum(weight, 1)
    return highest, total, attended * fade[:, None] + tl.dot(weight, value, input_precision=precision)


def _keep_part(
    partial: tl.tensor,
    weights: tl.tensor,
    result: tl.tensor,
    member: tl.tensor,
    largest: tl.tensor,
    total: tl.tensor,
    attended: tl.tensor,
    head_dim: tl.constexpr,
) -> None:
    """Leaves a softmax under way, one row a `result`, for `_combine`."""
    dim = tl.arange(0, attended.shape[1])[None, :]
    tl.store(partial + result[:, None] * head_dim + dim, attended, mask=member[:, None] & (dim < head_dim))
    tl.store(weights + result * 2, largest, mask=member)
    tl.store(weights + result * 2 + 1, total, mask=member)


# Called by the kernels, and compiled into them.
begins_tile: Any = triton.jit(_begins_tile)
tile_rows: Any = triton.jit(_tile_rows)
cells: Any = triton.jit(_cells)
counting: Any = triton.jit(_counting)
nothing_attended: Any = triton.jit(_nothing_attended)
fold: Any = triton.jit(_fold)
keep_part: Any = triton.jit(_keep_part)


def _attend(
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    depths: tl.tensor,
    page_table: tl.tensor,
    rows: tl.tensor,
    positions: tl.tensor,
    slots: tl.tensor,
    page_parts: tl.tensor,
    has_holes: tl.tensor,
    out: tl.tensor,
    partial: tl.tensor,
    weights: tl.tensor,
    scale: tl.tensor,
    column: tl.tensor,
    pages: tl.tensor,
    pages_per_row: tl.tensor,
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
    may_have_holes: tl.constexpr,
    precision: tl.constexpr,
) -> None:
    """Program (query, kv head, split of the context): a tile of queries over one stretch of their common context.

    A tile's first query's program does the work for all of it; the others have nothing to do. With `single` the
    attended values go to `out`, else unnormalised ones to `partial` [n, heads, splits, head_dim] and their maximum and
    sum of weights to `weights` [n, heads, splits, 2].
    """
    first, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if not begins_tile(rows, slots, first, tile):
        return

    at, head, member = tile_rows(rows, slots, first, kv_head, group, padded_group, tile)
    position = tl.load(positions + at, mask=member, other=-1)
    start = part * split
    end = tl.minimum(tl.max(position, 0) + 1, start + split)
    if start >= end:
        return

    dim = tl.arange(0, padded_dim)
    inside = (dim < head_dim)[None, :]
    written = member[:, None] & inside
    own = query + at.to(tl.int64)[:, None] * query_stride + head[:, None] * query_head_stride + dim[None, :]
    asked = tl.load(own, mask=written, other=0.0).to(tl.float32) * scale

    row = tl.load(rows + first).to(tl.int64)
    table = page_table + row * pages_per_row
    largest, total, attended = nothing_attended(tile * padded_group, padded_dim)
    for base in range(start, end, block):
        seen = base + tl.arange(0, block)
        known = seen < end
        if may_have_holes:
            known = counting(page_parts, has_holes, row, pages_per_row, seen, known, page_size)
        cell = cells(depths, table, tl.load(slots + first), seen, known, column, pages, column_slots, page_size)
        there = ((cell * kv_heads + kv_head) * head_dim)[:, None] + dim[None, :]
        key = tl.load(keys + there, mask=known[:, None] & inside, other=0.0).to(tl.float32)
        value = tl.load(values + there, mask=known[:, None] & inside, other=0.0).to(tl.float32)
        score = tl.dot(asked, tl.trans(key), input_precision=precision)
        score = tl.where(known[None, :] & (seen[None, :] <= position[:, None]), score, float("-inf"))
        largest, total, attended = fold(score, value, largest, total, attended, precision)

    result = at.to(tl.int64) * (kv_heads * group) + head
    if single:
        # Members have seen at least themselves; the other rows divide by 0 unless told not to.
        attended = attended / tl.where(member, total, 1.0)[:, None]
        tl.store(out + result[:, None] * head_dim + dim[None, :], attended.to(out.dtype.element_ty), mask=written)
    else:
        keep_part(partial, weights, result * tl.num_programs(2) + part, member, largest, total, attended, head_dim)


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
attend: Any = triton.jit(_attend, do_not_specialize=["column"])
combine: Any = triton.jit(_combine, do_not_specialize=["splits"])
