"""What CUDA graphs need, on a CPU: attention without a plan, and a capture that repeats operators, not Python."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from runtime.backend.attention import PagedCache, Queries
from runtime.backend.torch.cuda_graphs import Step
from runtime.model.specification import AttentionRule

aten = torch.ops.aten
WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten._unique2.default}
"""Operators whose results the host has to wait for on a CUDA device, so that a graph cannot hold them."""


class PlanlessAttention:
    """`PagedAttention` of one shape whatever the queries are: each reads its whole row of the page table."""

    capturable: ClassVar[bool] = True

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
        keys, values = (stored.view(-1, *stored.shape[3:]) for stored in (paged.keys, paged.values))
        pages, page_size = paged.keys.shape[1:3]
        row, position, slot = (tensor.long()[:, None] for tensor in queries)
        every = torch.arange(paged.page_table.shape[1] * page_size).minimum(position)

        def cell(at: Tensor) -> Tensor:
            return paged.page_table[row, at // page_size].long() * page_size + at % page_size

        own = ((column + slot) * pages * page_size + cell(position))[:, 0]
        keys[own], values[own] = key.to(keys.dtype), value.to(values.dtype)
        read = slot.minimum(paged.depths.view(-1)[cell(every)] - 1).clamp(min=0) if slots > 1 else 0
        index = (column + read) * pages * page_size + cell(every)
        seen, given = (
            stored[index].float().repeat_interleave(query.shape[1] // key.shape[1], 2) for stored in (keys, values)
        )
        scores = torch.einsum("nhd,nlhd->nhl", query.float(), seen) * rule.scale
        hidden = (torch.arange(every.shape[1]) > position) | self._in_holes(paged, row)
        weights = scores.masked_fill(hidden[:, None], -torch.inf).softmax(-1)
        return torch.einsum("nhl,nlhd->nhd", weights, given).to(query.dtype)

    def _in_holes(self, paged: PagedCache, row: Tensor) -> Tensor:
        """[n, places] bool, of the rows [n, 1] of queries."""
        assert paged.holes is not None
        page_size = paged.keys.shape[2]
        begin, end, _ = paged.holes.page_parts[row[:, 0]].repeat_interleave(page_size, 1).unbind(-1)
        offset = torch.arange(begin.shape[1]) % page_size
        return (paged.holes.has_holes[row] > 0) & ((offset < begin) | (offset >= end))


class Tape(TorchDispatchMode):
    """Records every operator with the tensors it was given and made, and refuses what a CUDA graph would."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        by_mask = func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default) and any(
            index is not None and index.dtype is torch.bool for index in args[1]
        )
        if func in WAITS or by_mask:
            raise RuntimeError(f"{func} makes the host wait for the device: a CUDA graph cannot hold it")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def play(self) -> None:
        """Computes everything again, from what the same tensors hold now and into the same tensors."""
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            pairs = (
                [(result, again)]
                if isinstance(result, Tensor)
                else zip(tree_leaves(result), tree_leaves(again), strict=True)
            )
            for old, new in pairs:
                # Views and changes in place have already reached the tensors recorded.
                if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


class TapeCapture:
    """`Capture` by recording. As in a shared pool of graphs, a replay spoils the results of all others."""

    def __init__(self) -> None:
        self.results: list[Tensor] = []
        self.replays = 0

    def __call__(self, step: Step) -> Step:
        step()
        with Tape() as tape:
            result = step()
        self.results.append(result)

        def replay() -> Tensor:
            for other in self.results:
                other.fill_(torch.nan)
            tape.play()
            self.replays += 1
            return result

        return replay
