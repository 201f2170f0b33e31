"""Attention over the paged cache with iteration slots: what every kernel for it takes and gives."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from runtime.model.specification import AttentionRule


class Holes(NamedTuple):
    """Which rows have holes, and what of their pages counts; all as the backend has it, see `RowHoles`."""

    page_parts: Tensor
    """[rows, pages_per_row, 3] int32, on the cache's device."""
    has_holes: Tensor
    """[rows] int32, on the cache's device: not 0 where a row has any."""
    on_host: Tensor
    """[rows] bool, on the CPU: the same."""


class PagedCache(NamedTuple):
    """The arrays that hold every thread's keys and values; layout as in `CacheShape`. All contiguous, on one device.

    The arrays last as long as the backend: kernels may keep views of them. Their contents may change between calls.
    """

    keys: Tensor
    """[columns, pages, page_size, kv_heads, head_dim] in the model's dtype."""
    values: Tensor
    """Like `keys`."""
    depths: Tensor
    """[pages, page_size] int32: core iterations done so far by the token stored there."""
    page_table: Tensor
    """[rows, pages_per_row] int32: the pages of each computing thread, in order of position.

    What lies beyond a thread's last token is never read and may hold anything; so may what lies before every window.
    """
    holes: Holes | None = None
    """None where no row ever has any. A window is one of positions, as `page_parts` gives them."""


class Queries(NamedTuple):
    """Which tokens attend in one call; one row a query, in any order, no token twice.

    Every position before a query's has been written in an earlier call or is in the same call. The tensors are
    contiguous, and on the CPU or the cache's device.
    """

    row: Tensor
    """[n] int32 row of the page table."""
    position: Tensor
    """[n] int32: the query sees positions 0 .. position of its row, itself included. In rows with holes these are
    places, of which it sees those that count."""
    slot: Tensor
    """[n] int32: (iteration - 1) mod slots; 0 outside the core block."""


class PagedAttention(Protocol):
    """Writes the queries' own keys and values into paged, then attends."""

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
        """Attended values [n, heads, head_dim] in the dtype of `query`.

        `column` is the layer's first column, `slots` how many it owns (1 outside the core block). `query` is
        [n, heads, head_dim], `key` and `value` are [n, kv_heads, head_dim], all rotated; `heads` is a multiple of
        `kv_heads`, and query head h attends over key and value head h // (heads / kv_heads). Row i's key and value
        go to column `column + slot[i]` at its position. Then query i attends over positions p = 0 .. position[i] of
        its row, reading column `column + min(slot[i], depths[p] - 1)`, never before `column` (just `column` where
        slots is 1); all writes of the call come first. `depths` counts the iteration under way, so that a query sees
        what it has just written; with `rule.window`, only the last so many of those positions. Softmax in float32, of
        scores scaled and capped as `rule` says. `key` and `value` are rounded to the cache's dtype.
        """
        ...
