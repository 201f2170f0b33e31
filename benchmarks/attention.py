"""The in-place attention kernel against the gathering reference, one query a thread."""

from __future__ import annotations

import time
from functools import partial

import msgspec
import torch
from torch import Tensor

from benchmarks.result import Cell, Result, Spread
from benchmarks.timing import in_turn, ratios
from runtime.backend.attention import PagedAttention, PagedMemory, Queries
from runtime.backend.numba_attention import NumbaAttention
from runtime.backend.torch_attention import TorchAttention


class Size(msgspec.Struct, frozen=True, kw_only=True):
    queries: tuple[int, ...] = (1, 8, 32, 128)
    context: tuple[int, int] = (20, 200)
    """Least and greatest length of the contexts."""
    heads: int = 4
    head_dim: int = 32
    slots: int = 6
    page_size: int = 16
    calls: int = 100
    """In each round."""


class Call(msgspec.Struct, frozen=True):
    """Arguments of one call of a kernel."""

    memory: PagedMemory
    queries: Queries
    column: int
    slots: int
    query: Tensor
    key: Tensor
    value: Tensor

    def run(self, kernel: PagedAttention) -> Tensor:
        return kernel(self.memory, self.queries, self.column, self.slots, self.query, self.key, self.value)


def measure(size: Size, rounds: int) -> Result:
    return Result(
        name="attention",
        title="paged attention of one layer, Numba kernel against gathering reference",
        columns=(
            "queries",
            "reference / kernel, seconds",
            "kernel, us/call",
            "reference, us/call",
            "greatest difference",
        ),
        rows=tuple(_compare(size, queries, rounds) for queries in size.queries),
        notes=(f"Contexts of {size.context[0]} to {size.context[1]} tokens, {size.slots} iteration slots.",),
    )


def _compare(size: Size, queries: int, rounds: int) -> tuple[Cell, ...]:
    call = make_call(size, queries)
    kernel, reference = NumbaAttention(), TorchAttention()
    difference = (call.run(kernel) - call.run(reference)).abs().max()
    seconds = in_turn(
        {
            "kernel": partial(_repeat, call, kernel, size.calls),
            "reference": partial(_repeat, call, reference, size.calls),
        },
        rounds,
    )
    return (
        queries,
        Spread.of(ratios(seconds["reference"], seconds["kernel"])),
        Spread.of(taken / size.calls * 1e6 for taken in seconds["kernel"]),
        Spread.of(taken / size.calls * 1e6 for taken in seconds["reference"]),
        float(difference),
    )


def make_call(size: Size, queries: int) -> Call:
    """Threads with contexts of evenly spread lengths, each about to compute one more token at some iteration."""
    generator = torch.Generator().manual_seed(0)
    pages_per_row = -(-size.context[1] // size.page_size)
    pages = queries * pages_per_row
    shape = (size.slots, pages, size.page_size, size.heads, size.head_dim)
    shortest, longest = size.context
    lengths = (shortest + (longest - shortest) * (torch.arange(queries) + 0.5) / queries).round().int()
    slot = torch.arange(queries, dtype=torch.int32) % size.slots
    depths = torch.full((pages, size.page_size), size.slots, dtype=torch.int32)
    table = torch.randperm(pages, generator=generator).view(queries, pages_per_row).int()
    position = lengths - 1
    own = table[torch.arange(queries), position // size.page_size]
    depths[own.long(), (position % size.page_size).long()] = slot + 1
    query, key, value = torch.randn(3, queries, size.heads, size.head_dim, generator=generator)
    return Call(
        memory=PagedMemory(
            keys=torch.randn(shape, generator=generator),
            values=torch.randn(shape, generator=generator),
            depths=depths,
            page_table=table,
        ),
        queries=Queries(torch.arange(queries, dtype=torch.int32), position, slot),
        column=0,
        slots=size.slots,
        query=query,
        key=key,
        value=value,
    )


@torch.inference_mode()
def _repeat(call: Call, kernel: PagedAttention, calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        call.run(kernel)
    return time.perf_counter() - started
