"""Paged attention in plain PyTorch, on any device: the reference that every other kernel is tested against."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.backend.attention import PagedCache, Queries
from runtime.model.specification import AttentionRule
from runtime.model.transformer import attend_densely

_ALIKE = 256
"""Groups of contexts up to this long are padded to one length; longer ones only with their own power of two."""

_GATHERED = 1 << 26
_GATHERED_ON_CPU = 1 << 18
"""Numbers gathered at a time, for keys and values each, unless one group needs more; on a CPU they stay in cache."""


class _Batch(NamedTuple):
    """Groups of queries gathered together. Queries of a group have row and slot, and so keys and values, in common."""

    members: Tensor
    """[groups, queries] int64 indices into the call's queries; a short group repeats its last."""
    real: Tensor
    """[groups, queries] bool: false for the repeats."""
    start: Tensor
    """[groups] int64: the first position that a query of the group sees, or 0."""
    page_size: int
    length: int
    """Positions to attend over: those of the longest context or window, or of a whole row."""
    holes: Tensor | None
    """What of the pages counts, where the groups' rows have holes."""


class _Reach(NamedTuple):
    """What the queries of a batch attend over."""

    place: Tensor
    """[groups, length] int64: places in their rows, each of an entry that exists."""
    visible: Tensor
    """[groups, queries, length] bool."""


class TorchAttention:
    """`PagedAttention` that gathers keys and values by flat index and attends in float32.

    With `fixed_shape`, the arithmetic of every query has the same shape whatever else is in the call (one query over
    the whole row of the page table), so that its result is bitwise independent of the others; it is slower.
    """

    def __init__(self, fixed_shape: bool = False) -> None:
        self.fixed_shape = fixed_shape

    def __call__(
        self,
        paged: PagedCache,
        queries: Queries,
        column: int,
        slots: int,
        rule: AttentionRule,
        query: Tensor,
        key: Tensor,
        value: Tensor,
    ) -> Tensor:
        """See `PagedAttention`. The tensors of `queries` may be on the cache's device or on the CPU."""
        keys, values = (array.view(-1, *array.shape[3:]) for array in (paged.keys, paged.values))
        row, position, slot = (tensor.to(keys.device, torch.int64) for tensor in queries)
        written = _flat_index(paged, row, position, column + slot)
        keys.index_copy_(0, written, key.to(keys.dtype))
        values.index_copy_(0, written, value.to(values.dtype))

        out = torch.empty_like(query)
        for batch in _batches(paged, queries, slots, self.fixed_shape, rule.window):
            first, wanted_at = batch.members[:, 0], position[batch.members]
            if batch.holes is None:
                seen, visible = _reach(batch, wanted_at, rule.window)
            else:
                seen, visible = _reach_over_holes(batch, batch.holes, row[first], wanted_at, rule.window)
            columns = column + _slots_read(paged, row[first, None], seen, slot[first, None], slots)
            index = _flat_index(paged, row[first, None], seen, columns)
            wanted = query[batch.members]
            if self.fixed_shape:
                attended = _attend_each(wanted, keys, values, index, visible, rule)
            else:
                attended = _attend(wanted, _gather(keys, index), _gather(values, index), visible, rule)
            out[batch.members[batch.real]] = attended[batch.real].to(out.dtype)
        return out


def _reach(batch: _Batch, position: Tensor, window: int | None) -> _Reach:
    """Over rows without holes, of queries at `position` [groups, queries]."""
    positions = batch.start[:, None] + torch.arange(batch.length, device=position.device)
    # Nobody has written what is beyond a group's last query, and what no query sees may be another's: read an entry
    # that is seen in its place.
    seen = positions.minimum(position.amax(1)[:, None])
    if window is not None:
        seen = seen.maximum((position.amin(1) + 1 - window).clamp(min=0)[:, None])
    distance = position[..., None] - positions[:, None]
    return _Reach(seen, (distance >= 0) if window is None else (distance >= 0) & (distance < window))


def _reach_over_holes(batch: _Batch, parts: Tensor, row: Tensor, place: Tensor, window: int | None) -> _Reach:
    """The same over rows [groups] with holes, of queries at `place` [groups, queries]."""
    page_size = batch.page_size
    places = torch.arange(batch.length, device=place.device)
    begin, end, base = parts[row[:, None], places // page_size].long().unbind(-1)
    offset, last = places % page_size, place.amax(1)[:, None]
    counts = (begin <= offset) & (offset < end) & (places <= last)
    visible = counts[:, None] & (places <= place[..., None])
    if window is not None:
        own = parts[row[:, None], place // page_size, 2].long() + place % page_size
        position = base + offset
        counts = counts & (position > own.amin(1)[:, None] - window)
        visible = visible & (position[:, None] > own[..., None] - window)
    return _Reach(torch.where(counts, places, last), visible)


def _flat_index(paged: PagedCache, row: Tensor, position: Tensor, column: Tensor) -> Tensor:
    """Index into [columns * pages * page_size] of the tokens at `position` of `row`; shapes broadcast, int64."""
    pages, page_size = paged.keys.shape[1:3]
    page = paged.page_table[row, position // page_size].long()
    return (column * pages + page) * page_size + position % page_size


def _gather(stored: Tensor, index: Tensor) -> Tensor:
    """`stored[index]`, through the call that is several times faster on a CPU."""
    return stored.index_select(0, index.flatten()).view(*index.shape, *stored.shape[1:])


def _slots_read(paged: PagedCache, row: Tensor, position: Tensor, slot: Tensor, slots: int) -> Tensor:
    """The iteration slot that a query in `slot` reads of each position; shapes broadcast, int64."""
    if slots == 1:
        return torch.zeros_like(position)
    page_size = paged.keys.shape[2]
    page = paged.page_table[row, position // page_size].long()
    return slot.minimum(paged.depths[page, position % page_size].long() - 1).clamp(min=0)


def _batches(paged: PagedCache, queries: Queries, slots: int, fixed_shape: bool, window: int | None) -> list[_Batch]:
    """Sorts queries into groups of the same row and slot, and groups of similar size and length into batches.

    With `fixed_shape` every batch has the length of a whole row, and its groups are of one size.
    """
    row, position, slot = (tensor.cpu().numpy().astype(np.int64) for tensor in queries)
    if not len(row):
        return []
    holes = paged.holes
    has_holes = np.zeros(len(row), np.bool_) if holes is None else holes.on_host.numpy()[row]
    shared = row * slots + slot
    order = np.argsort(shared, kind="stable")
    starts = np.flatnonzero(np.diff(shared[order], prepend=-1))
    sizes = np.diff(starts, append=len(row))
    ends = np.maximum.reduceat(position[order], starts) + 1
    seen_from = np.zeros_like(ends)
    holed = has_holes[order[starts]]
    if window is not None and not fixed_shape:
        seen_from = np.maximum(np.minimum.reduceat(position[order], starts) + 1 - window, 0)
        seen_from[holed] = 0
    lengths = ends - seen_from
    if fixed_shape:
        lengths = np.full_like(lengths, paged.page_table.shape[1] * paged.keys.shape[2])
        kinds = sizes
    else:
        kinds = _power_of_two(sizes) * 64 + _power_of_two(np.maximum(lengths, _ALIKE))
    kinds = 2 * kinds + holed
    device = paged.keys.device
    most = _GATHERED_ON_CPU if device.type == "cpu" else _GATHERED
    page_size = paged.keys.shape[2]
    batches = []
    for kind in np.unique(kinds):
        groups = np.flatnonzero(kinds == kind)
        groups = groups[np.argsort(lengths[groups])]
        parts = holes.page_parts if holes is not None and kind % 2 else None
        entry = paged.keys.shape[-2:].numel()
        step = max(1, int(most // (lengths[groups[-1]] * entry)))
        for chosen in np.split(groups, range(step, len(groups), step)):
            within = np.arange(sizes[chosen].max())
            members = torch.from_numpy(order[starts[chosen, None] + np.minimum(within, sizes[chosen, None] - 1)])
            real = torch.from_numpy(within < sizes[chosen, None])
            start = torch.from_numpy(seen_from[chosen]).to(device)
            batches.append(
                _Batch(members.to(device), real.to(device), start, page_size, int(lengths[chosen[-1]]), parts)
            )
    return batches


def _power_of_two(count: NDArray[np.int64]) -> NDArray[np.int64]:
    """Exponent of the smallest power of two that is at least `count` (at least 1)."""
    return np.ceil(np.log2(count)).astype(np.int64)


def _attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, rule: AttentionRule) -> Tensor:
    """Attended values [groups, queries, heads, head_dim] in float32.

    `query` is [groups, queries, heads, head_dim], `key` and `value` [groups, length, kv_heads, head_dim], `visible`
    [groups, queries, length] bool.
    """
    query, key, value = (tensor.float().transpose(1, 2) for tensor in (query, key, value))
    return attend_densely(query, key, value, rule, visible[:, None]).transpose(1, 2)


def _attend_each(
    query: Tensor, keys: Tensor, values: Tensor, index: Tensor, visible: Tensor, rule: AttentionRule
) -> Tensor:
    """Like `_attend` over the keys and values at `index` [groups, length], one query at a time."""
    attended = torch.empty_like(query, dtype=torch.float32)
    for group in range(len(query)):
        key, value = _gather(keys, index[group : group + 1]), _gather(values, index[group : group + 1])
        for i in range(query.shape[1]):
            one = query[group : group + 1, i : i + 1]
            attended[group, i] = _attend(one, key, value, visible[group : group + 1, i : i + 1], rule)[0, 0]
    return attended
