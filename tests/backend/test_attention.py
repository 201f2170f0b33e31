"""Every paged attention kernel against a loop over queries and positions that says what the interface says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from runtime.backend.attention import Holes, PagedAttention, PagedCache, Queries
from runtime.backend.torch.attention import TorchAttention
from runtime.model.specification import AttentionRule

FIRST_COLUMN = 1
"""Every case has a column before and one after the layer's own, which must stay as they were."""

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Case:
    paged: PagedCache
    queries: Queries
    slots: int
    query: Tensor
    key: Tensor
    value: Tensor
    window: int | None = None
    softcap: float | None = None

    def run(self, attention: PagedAttention) -> Tensor:
        """The attended values; writes into the case's paged."""
        rule = AttentionRule(scale=self.query.shape[-1] ** -0.5, window=self.window, softcap=self.softcap)
        return attention(self.paged, self.queries, FIRST_COLUMN, self.slots, rule, self.query, self.key, self.value)

    def copied(self) -> Case:
        """The same with a memory of its own."""
        return replace(self, paged=moved(self.paged, torch.Tensor.clone))

    def only(self, chosen: list[int]) -> Case:
        """The same with some of the queries, in the given order."""
        return replace(
            self,
            queries=Queries(*(tensor[chosen] for tensor in self.queries)),
            query=self.query[chosen],
            key=self.key[chosen],
            value=self.value[chosen],
        )

    def on(self, device: str) -> Case:
        return Case(
            moved(self.paged, lambda tensor: tensor.to(device)),
            Queries(*(tensor.to(device) for tensor in self.queries)),
            self.slots,
            self.query.to(device),
            self.key.to(device),
            self.value.to(device),
            self.window,
            self.softcap,
        )


def moved(paged: PagedCache, move: Callable[[Tensor], Tensor]) -> PagedCache:
    """The same elsewhere, or a copy."""
    keys, values, depths, page_table, holes = paged
    if holes is not None:
        holes = Holes(move(holes.page_parts), move(holes.has_holes), holes.on_host)
    return PagedCache(move(keys), move(values), move(depths), move(page_table), holes)


def make_case(
    seed: int,
    *,
    heads: int,
    shared: int = 1,
    head_dim: int,
    slots: int = 1,
    page_size: int = 4,
    contexts: list[tuple[int, int]],
    forked: bool = False,
    dtype: torch.dtype = torch.float32,
    window: int | None = None,
    softcap: float | None = None,
    holed: bool = False,
) -> Case:
    """Threads with (tokens of the past, tokens that query now) in a memory that holds NaN where nobody has written.

    `heads` is those of keys and values; each serves `shared` heads of queries. Pages are shuffled and page-table
    entries beyond a thread's end are -1. With `forked`, every thread after the
    first shares the full pages that the first had in common with it. With `window`, pages before the windows of all
    that query are nobody's. With `holed`, every other row has holes before the tokens that query, which hold NaN.
    """
    draw = np.random.default_rng(seed)
    pages_per_row = max((past + new - 1) // page_size + 1 for past, new in contexts) + 1
    pages = len(contexts) * pages_per_row + 2
    free = iter(draw.permutation(pages).tolist())
    table = np.full((len(contexts), pages_per_row), -1, np.int32)
    for row, (past, new) in enumerate(contexts):
        common = min(past, contexts[0][0]) // page_size if forked and row else 0
        table[row, :common] = table[0, :common]
        for block in range(common, (past + new - 1) // page_size + 1):
            table[row, block] = next(free)

    shape = (slots + 2, pages, page_size, heads, head_dim)
    keys, values = np.full((2, *shape), np.nan, np.float32)
    depths = np.zeros((pages, page_size), np.int32)
    asked = []
    for row, (past, new) in enumerate(contexts):
        for position in range(past + new):
            page, offset = table[row, position // page_size], position % page_size
            if not depths[page, offset]:
                depths[page, offset] = draw.integers(1, slots + 3)
                written = FIRST_COLUMN + np.arange(min(slots, depths[page, offset]))
                keys[written, page, offset] = draw.normal(size=(len(written), heads, head_dim))
                values[written, page, offset] = draw.normal(size=(len(written), heads, head_dim))
            if position >= past:
                slot = (depths[page, offset] - 1) % slots
                keys[FIRST_COLUMN + slot, page, offset] = values[FIRST_COLUMN + slot, page, offset] = np.nan
                asked.append((row, position, slot))
    parts, has_holes = np.zeros((len(contexts), pages_per_row, 3), np.int32), np.arange(len(contexts)) % 2 < holed
    for row in np.flatnonzero(has_holes).tolist():
        make_holes(draw, parts[row], page_size, contexts[row][0])
        if forked:
            continue
        for place in range(contexts[row][0]):
            page, offset = table[row, place // page_size], place % page_size
            if not parts[row, place // page_size, 0] <= offset < parts[row, place // page_size, 1]:
                keys[:, page, offset] = values[:, page, offset] = np.nan
    for row in np.flatnonzero(~has_holes).tolist():
        past = contexts[row][0]
        table[row, : 0 if window is None else max(0, past + 1 - window) // page_size] = -1
    indices = draw.permutation(np.array(asked, np.int32).reshape(-1, 3))
    query = draw.normal(size=(len(asked), heads * shared, head_dim))
    key, value = draw.normal(size=(2, len(asked), heads, head_dim))
    return Case(
        PagedCache(
            torch.from_numpy(keys).to(dtype),
            torch.from_numpy(values).to(dtype),
            torch.from_numpy(depths),
            torch.from_numpy(table),
            Holes(*(torch.from_numpy(each) for each in (parts, has_holes.astype(np.int32), has_holes))),
        ),
        Queries(*(torch.from_numpy(np.ascontiguousarray(column)) for column in indices.T)),
        slots,
        torch.from_numpy(query).to(dtype),
        torch.from_numpy(key).to(dtype),
        torch.from_numpy(value).to(dtype),
        window,
        softcap,
    )


def make_holes(draw: np.random.Generator, parts: NDArray[np.int32], page_size: int, past: int) -> None:
    """Parts of the pages [pages, 3] of a row; from place `past` on everything counts, at positions that go on."""
    for number in range(len(parts)):
        # What counts of the page in which tokens begin to query reaches its end.
        kept = min(max(past - number * page_size, 0), page_size)
        begin, end = sorted(draw.integers(0, kept + 1, 2).tolist())
        parts[number] = begin, end if kept == page_size else page_size, number * page_size // 2


def expected(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Attended values [n, heads, head_dim] in float64, and the keys and values of memory after the call."""
    keys, values = case.paged.keys.clone(), case.paged.values.clone()
    depths, table = case.paged.depths.tolist(), case.paged.page_table.tolist()
    page_size = keys.shape[2]
    asked = list(zip(*(tensor.tolist() for tensor in case.queries), strict=True))
    for i, (row, position, slot) in enumerate(asked):
        place = FIRST_COLUMN + slot, table[row][position // page_size], position % page_size
        keys[place], values[place] = case.key[i].to(keys.dtype), case.value[i].to(values.dtype)
    attended = torch.empty(case.query.shape, dtype=torch.float64)
    shared = case.query.shape[1] // case.key.shape[1]
    for i, (row, position, slot) in enumerate(asked):
        places = []
        for p in range(position + 1):
            if not is_seen(case, row, position, p):
                continue
            page, offset = table[row][p // page_size], p % page_size
            read = min(slot, depths[page][offset] - 1) if case.slots > 1 else 0
            places.append((FIRST_COLUMN + read, page, offset))
        index = torch.tensor(places).unbind(1)
        read_keys, read_values = keys[index].double(), values[index].double()
        for h in range(case.query.shape[1]):
            scores = read_keys[:, h // shared] @ case.query[i, h].double() / math.sqrt(case.query.shape[2])
            if case.softcap is not None:
                scores = case.softcap * (scores / case.softcap).tanh()
            attended[i, h] = scores.softmax(0) @ read_values[:, h // shared]
    return attended, keys, values


def is_seen(case: Case, row: int, place: int, other: int) -> bool:
    """Whether a query at `place` of a row sees `other`, which is not behind it."""
    holes, size = case.paged.holes, case.paged.keys.shape[2]
    if holes is None or not holes.on_host[row]:
        return case.window is None or place - other < case.window
    parts = holes.page_parts[row].tolist()
    (begin, end, base), (_, _, own) = parts[other // size], parts[place // size]
    distance = own + place % size - (base + other % size)
    return bool(begin <= other % size < end) and (case.window is None or distance < case.window)


def check(case: Case, attention: PagedAttention) -> None:
    attended, keys, values = expected(case)
    result = case.run(attention)
    assert result.dtype == case.query.dtype
    tolerance = TOLERANCE[case.paged.keys.dtype]
    torch.testing.assert_close(result.double().cpu(), attended, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(case.paged.keys.cpu(), keys, atol=0, rtol=0, equal_nan=True)
    torch.testing.assert_close(case.paged.values.cpu(), values, atol=0, rtol=0, equal_nan=True)


@st.composite
def cases(draw: st.DrawFn, head_dims: dict[torch.dtype, list[int]], ruled: bool = False) -> Case:
    """With `ruled`, scores may be capped, and windows cut the past off."""
    dtype = draw(st.sampled_from(list(head_dims)))
    tokens = st.tuples(st.integers(0, 40), st.one_of(st.just(1), st.integers(0, 12)))
    return make_case(
        draw(st.integers(0, 2**32 - 1)),
        heads=draw(st.sampled_from([1, 2, 3, 5])),
        shared=draw(st.sampled_from([1, 1, 2, 3])),
        head_dim=draw(st.sampled_from(head_dims[dtype])),
        slots=draw(st.integers(1, 4)),
        page_size=draw(st.sampled_from([1, 4, 5, 16])),
        contexts=draw(st.lists(tokens.filter(any), min_size=1, max_size=5)),
        forked=draw(st.booleans()),
        dtype=dtype,
        window=draw(st.none() | st.integers(1, 30)) if ruled else None,
        softcap=draw(st.none() | st.sampled_from([0.5, 20.0])) if ruled else None,
        holed=draw(st.booleans()),
    )


ANY_HEAD_DIM = {torch.float32: [2, 6, 8, 16, 32, 64], torch.bfloat16: [2, 6, 8, 16, 32, 64]}
COMPILED_HEAD_DIM = {torch.float32: [8, 12, 16, 32, 64], torch.bfloat16: [8, 32]}
"""Every width and dtype costs seconds of compiling where no earlier run has left them on disk."""


@settings(max_examples=120)
@given(case=cases(ANY_HEAD_DIM, ruled=True), fixed_shape=st.booleans())
def test_the_reference_is_what_the_interface_says(case: Case, fixed_shape: bool) -> None:
    check(case, TorchAttention(fixed_shape))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fixed_shape", [False, True])
def test_the_reference_agrees_with_itself_on_cuda(dtype: torch.dtype, fixed_shape: bool) -> None:
    case = make_case(0, heads=3, head_dim=32, slots=4, contexts=[(400, 1), (0, 70), (33, 1)], forked=True, dtype=dtype)
    there = case.on("cuda").run(TorchAttention(fixed_shape)).cpu()
    torch.testing.assert_close(there, case.run(TorchAttention()), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


KERNELS = [TorchAttention(), TorchAttention(fixed_shape=True)]
INDEPENDENT = KERNELS[1:]
"""Kernels that promise the same bits whatever else is in a call."""


@pytest.mark.parametrize("attention", KERNELS)
@pytest.mark.parametrize("shared", [1, 4])
def test_chunks_of_hundreds_of_queries_and_long_contexts(attention: PagedAttention, shared: int) -> None:
    contexts = [(0, 300), (130, 1), (5, 33), (700, 1), (3, 1), (64, 40)]
    case = make_case(1, heads=2, shared=shared, head_dim=8, slots=2, page_size=16, contexts=contexts)
    check(case, attention)


@pytest.mark.parametrize("attention", INDEPENDENT)
@settings(max_examples=25)
@given(data=st.data())
def test_a_query_is_bitwise_independent_of_the_batch(attention: PagedAttention, data: st.DataObject) -> None:
    case = data.draw(cases(COMPILED_HEAD_DIM, ruled=True).filter(lambda case: len(case.query) > 0))
    together = case.run(attention)
    everyone = range(len(together))
    groups = [[i] for i in everyone]
    groups += data.draw(st.lists(st.lists(st.sampled_from(everyone), min_size=1, unique=True), max_size=4))
    for group in groups:
        # The writes of those left out are already in paged.
        assert torch.equal(case.only(group).run(attention), together[group])


@pytest.mark.parametrize("attention", INDEPENDENT)
@pytest.mark.parametrize(("page_size", "heads", "shared"), [(1, 3, 1), (16, 3, 1), (16, 1, 3)])
def test_a_query_is_bitwise_independent_of_a_large_batch(
    attention: PagedAttention, page_size: int, heads: int, shared: int
) -> None:
    draw = np.random.default_rng(page_size)
    contexts = [(int(past), 1) for past in draw.integers(0, 200, 40)] + [(0, 60), (150, 40)]
    case = make_case(
        2, heads=heads, shared=shared, head_dim=32, slots=3, page_size=page_size, contexts=contexts, forked=True
    )
    together = case.run(attention)
    for size in (1, 2, 3, 17, 64):
        for _ in range(3):
            group = draw.permutation(len(together))[:size].tolist()
            assert torch.equal(case.only(group).run(attention), together[group])


@pytest.mark.parametrize("attention", KERNELS)
def test_keys_and_values_are_rounded_to_the_memory_and_may_be_strided(attention: PagedAttention) -> None:
    case = make_case(3, heads=4, head_dim=8, slots=2, contexts=[(9, 1), (2, 5)], dtype=torch.bfloat16)
    fused = torch.randn(len(case.query), 3, 4, 8, generator=torch.Generator().manual_seed(0))
    case = replace(case, query=fused[:, 0], key=fused[:, 1], value=fused[:, 2])
    check(case, attention)


@pytest.mark.parametrize("attention", KERNELS)
def test_without_queries_nothing_is_written(attention: PagedAttention) -> None:
    case = make_case(4, heads=2, head_dim=8, contexts=[(6, 0), (3, 0)])
    assert case.run(attention).shape == (0, 2, 8)
    check(case, attention)


@pytest.mark.parametrize("attention", KERNELS)
def test_one_kernel_serves_several_memories_and_sees_them_change(attention: PagedAttention) -> None:
    first = make_case(5, heads=2, head_dim=8, contexts=[(6, 2), (3, 1)])
    second = make_case(6, heads=3, head_dim=8, contexts=[(20, 1)])
    for case in (first, second, first.copied(), first, second):
        check(case, attention)
    first.paged.page_table.copy_(first.paged.page_table.flip(0))
    first.paged.keys.normal_()
    first.paged.values.normal_()
    check(first.only([i for i, position in enumerate(first.queries.position.tolist()) if position == 3]), attention)
