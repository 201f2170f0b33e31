"""Paged attention on CUDA, by Triton kernels that read and write the paged cache in place."""

from __future__ import annotations

import importlib.util
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from runtime.backend.attention import PagedAttention, PagedCache, Queries
from runtime.model.served import Served
from runtime.model.specification import AttentionRule

_TILE_ROWS = 16
"""Heads and queries that go over keys and values together: the smallest matrix product there is on tensor cores."""

_SPLIT = 512
"""Positions that one program goes over, at least; longer contexts are shared out among several."""

MOST_SPLITS = 16
"""Programs that share one context at most; of very long rows, each goes over more positions."""

WARPS, STAGES = 4, 2
"""Of the attention kernel: groups of 32 device threads a program has, and blocks that it loads ahead."""

_BLOCK_BYTES = 16384
"""Keys that a program holds at a time, and as much of values: what fits the shared memory of any device."""


class TritonAttention:
    """`PagedAttention` over a float32 or bfloat16 cache on CUDA, or anywhere in Triton's interpreter.

    Products over a float32 cache are taken in full float32, those over a bfloat16 one in TF32, which holds bfloat16
    numbers exactly. A context is split by the width of the page table alone, and every tile has one shape, so that
    what a query is answered does not depend on how many others are in the call.

    Given queries on the cache's device, a call plans nothing on the host and never waits for the device.
    """

    capturable: ClassVar[bool] = True
    """Whether a call over queries on the device may be captured in a CUDA graph."""

    def __init__(self) -> None:
        self._placed: tuple[Queries, Queries] | None = None
        """The last queries that came from the host and their copies on the device; layers ask with the same ones."""

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
        """See `PagedAttention`. Rows, positions, slots and pages that do not exist are not noticed.

        Raises `TypeError` for a cache of another dtype and `ValueError` for shapes that do not fit each other, and for
        rules with a window, a soft cap or sinks, which the kernel does not have.
        """
        if not _knows(rule):
            raise ValueError(f"{rule}: this kernel has neither windows, nor soft caps, nor sinks. Use TorchAttention.")
        _check(paged, queries, query, key, value)
        if not len(query):
            return torch.empty_like(query)
        # Triton launches on the current device, wherever the tensors are.
        with torch.cuda.device_of(paged.keys):
            return self._launch(paged, queries, column, slots, rule, query, key, value)

    def _launch(
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
        from runtime.backend.torch import triton_kernel

        _, pages, _, kv_heads, head_dim = paged.keys.shape
        count, heads, _ = query.shape
        out = query.new_empty(query.shape)
        row_width = paged.page_table.shape[1]
        fixed = constants(paged, heads)
        splits = math.ceil(reach(paged, queries) / fixed["split"])
        row, position, slot = self._on_device(queries, paged.keys.device)
        query = _rows_in_place(query)
        self._store(paged, Queries(row, position, slot), column, key, value, fixed)
        holes = paged.holes
        # What is not looked at may be any pointer.
        page_parts, has_holes = (paged.page_table, row) if holes is None else (holes.page_parts, holes.has_holes)
        shape = (1,) if splits == 1 else (count, heads, splits)
        partial = torch.empty((*shape, head_dim), dtype=torch.float32, device=out.device)
        weights = torch.empty((*shape, 2), dtype=torch.float32, device=out.device)
        triton_kernel.attend[(count, kv_heads, splits)](
            query,
            paged.keys,
            paged.values,
            paged.depths,
            paged.page_table,
            row,
            position,
            slot,
            page_parts,
            has_holes,
            out,
            partial,
            weights,
            rule.scale,
            column,
            pages,
            row_width,
            query.stride(0),
            query.stride(1),
            **fixed,
            column_slots=slots,
            single=splits == 1,
            may_have_holes=_may_have_holes(paged, queries),
            num_warps=WARPS,
            num_stages=STAGES,
        )
        if splits > 1:
            triton_kernel.combine[(count, heads)](
                partial,
                weights,
                position,
                out,
                heads,
                splits,
                **_only(fixed, "head_dim", "padded_dim", "split"),
                most_splits=MOST_SPLITS,
            )
        return out

    def _store(
        self, paged: PagedCache, queries: Queries, column: int, key: Tensor, value: Tensor, fixed: dict[str, Any]
    ) -> None:
        """Writes keys and values to where their tokens are; `queries` are on the device."""
        from runtime.backend.torch import triton_kernel

        key, value = (_rows_in_place(tensor).to(paged.keys.dtype) for tensor in (key, value))
        triton_kernel.store[(len(key), key.shape[1])](
            key,
            value,
            paged.keys,
            paged.values,
            paged.page_table,
            *queries,
            column,
            paged.keys.shape[1],
            paged.page_table.shape[1],
            key.stride(0),
            key.stride(1),
            value.stride(0),
            value.stride(1),
            **_only(fixed, "page_size", "kv_heads", "head_dim", "padded_dim"),
        )

    def _on_device(self, queries: Queries, device: torch.device) -> Queries:
        if queries.position.device == device:
            return queries
        if self._placed is None or self._placed[0] is not queries or self._placed[1].position.device != device:
            # From pageable paged, a copy that is not waited for has still read all of it when the call returns.
            self._placed = queries, Queries(*(tensor.to(device, non_blocking=True) for tensor in queries))
        return self._placed[1]


def triton_attention() -> PagedAttention | None:
    """A `TritonAttention`, or None where Triton is not installed."""
    return TritonAttention() if importlib.util.find_spec("triton") else None


def has_kernel(specification: Served) -> bool:
    """Whether the kernel knows how all layers attend."""
    return all(_knows(specification.attention(layer)) for layer in range(len(specification.layers)))


def _knows(rule: AttentionRule) -> bool:
    return rule.window is None and rule.softcap is None and rule.sinks is None


def constants(paged: PagedCache, heads: int) -> dict[str, Any]:
    """What the kernels are compiled for, by name: the same for every call over a paged."""
    _, _, page_size, kv_heads, head_dim = paged.keys.shape
    group = heads // kv_heads
    padded_group, padded_dim = _power_of_two(group), max(16, _power_of_two(head_dim))
    positions = paged.page_table.shape[1] * page_size
    return {
        "page_size": page_size,
        "kv_heads": kv_heads,
        "group": group,
        "padded_group": padded_group,
        "head_dim": head_dim,
        "padded_dim": padded_dim,
        "tile": max(1, _TILE_ROWS // padded_group),
        "block": min(64, max(16, _BLOCK_BYTES // (padded_dim * paged.keys.element_size()))),
        "split": max(_SPLIT, _power_of_two(math.ceil(positions / MOST_SPLITS))),
        "precision": "ieee" if paged.keys.dtype is torch.float32 else "tf32",
    }


def reach(paged: PagedCache, queries: Queries) -> int:
    """Positions that the longest context may have: as the queries say where the host knows them, else a whole row."""
    if queries.position.device.type == "cpu":
        return int(queries.position.max()) + 1
    return paged.page_table.shape[1] * paged.keys.shape[2]


def _may_have_holes(paged: PagedCache, queries: Queries) -> bool:
    """Whether rows have holes, or may have by the time that a captured call, whose queries the host does not know, is
    replayed."""
    holes = paged.holes
    return holes is not None and (queries.position.device.type != "cpu" or bool(holes.on_host.any()))


def _only(fixed: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: fixed[name] for name in names}


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _rows_in_place(tensor: Tensor) -> Tensor:
    """[n, heads, head_dim] whose last dimension is dense; the others may be strided, as slices of fused products."""
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def _check(paged: PagedCache, queries: Queries, query: Tensor, key: Tensor, value: Tensor) -> None:
    for name in ("keys", "values"):
        dtype = getattr(paged, name).dtype
        if dtype not in (torch.float32, torch.bfloat16):
            raise TypeError(f"paged.{name} is {dtype}; this kernel needs float32 or bfloat16. Use TorchAttention.")
    _, _, _, kv_heads, head_dim = paged.keys.shape
    count, heads = len(queries.row), query.shape[1]
    expected = (count, kv_heads, head_dim)
    if heads % kv_heads or query.shape != (count, heads, head_dim) or not key.shape == value.shape == expected:
        raise ValueError(
            f"query, key and value are {tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}; expected "
            f"{(count, f'a multiple of {kv_heads}', head_dim)} and twice {expected} for the given queries and paged."
        )
