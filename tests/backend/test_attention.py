"""Every paged attention kernel against a loop over queries and positions that says what the interface says."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runtime.backend.attention import PagedAttention, PagedMemory, Queries
from runtime.backend.numba_attention import NumbaAttention, numba_attention
from runtime.backend.torch_attention import TorchAttention

FIRST_COLUMN = 1
"""Every case has a column before and one after the layer's own, which must stay as they were."""

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}

needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="Numba is not installed")


@dataclass(frozen=True)
class Case:
    memory: PagedMemory
    queries: Queries
    slots: int
    query: Tensor
    key: Tensor
    value: Tensor

    def run(self, attention: PagedAttention) -> Tensor:
        """The attended values; writes into the case's memory."""
        return attention(self.memory, self.queries, FIRST_COLUMN, self.slots, self.query, self.key, self.value)

    def copied(self) -> Case:
        """The same with a memory of its own."""
        return replace(self, memory=PagedMemory(*(tensor.clone() for tensor in self.memory)))

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
            PagedMemory(*(tensor.to(device) for tensor in self.memory)),
            Queries(*(tensor.to(device) for tensor in self.queries)),
            self.slots,
            *(tensor.to(device) for tensor in (self.query, self.key, self.value)),
        )


def make_case(
    seed: int,
    *,
    heads: int,
    head_dim: int,
    slots: int = 1,
    page_size: int = 4,
    contexts: list[tuple[int, int]],
    forked: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Threads with (tokens of the past, tokens that query now) in a memory that holds NaN where nobody has written.

    Pages are shuffled and page-table entries beyond a thread's end are -1. With `forked`, every thread after the
    first shares the full pages that the first had in common with it.
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
    indices = draw.permutation(np.array(asked, np.int32).reshape(-1, 3))
    query, key, value = draw.normal(size=(3, len(asked), heads, head_dim))
    return Case(
        PagedMemory(
            *(torch.from_numpy(array).to(dtype) for array in (keys, values)),
            torch.from_numpy(depths),
            torch.from_numpy(table),
        ),
        Queries(*(torch.from_numpy(np.ascontiguousarray(column)) for column in indices.T)),
        slots,
        *(torch.from_numpy(array).to(dtype) for array in (query, key, value)),
    )


def expected(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Attended values [n, heads, head_dim] in float64, and the keys and values of memory after the call."""
    keys, values = case.memory.keys.clone(), case.memory.values.clone()
    depths, table = case.memory.depths.tolist(), case.memory.page_table.tolist()
    page_size = keys.shape[2]
    asked = list(zip(*(tensor.tolist() for tensor in case.queries), strict=True))
    for i, (row, position, slot) in enumerate(asked):
        place = FIRST_COLUMN + slot, table[row][position // page_size], position % page_size
        keys[place], values[place] = case.key[i].to(keys.dtype), case.value[i].to(values.dtype)
    attended = torch.empty(case.query.shape, dtype=torch.float64)
    for i, (row, position, slot) in enumerate(asked):
        places = []
        for p in range(position + 1):
            page, offset = table[row][p // page_size], p % page_size
            read = min(slot, depths[page][offset] - 1) if case.slots > 1 else 0
            places.append((FIRST_COLUMN + read, page, offset))
        for h in range(case.query.shape[1]):
            seen = torch.stack([keys[place][h] for place in places]).double()
            weights = (seen @ case.query[i, h].double() / math.sqrt(case.query.shape[2])).softmax(0)
            attended[i, h] = weights @ torch.stack([values[place][h] for place in places]).double()
    return attended, keys, values


def check(case: Case, attention: PagedAttention) -> None:
    attended, keys, values = expected(case)
    result = case.run(attention)
    assert result.dtype == case.query.dtype
    tolerance = TOLERANCE[case.memory.keys.dtype]
    torch.testing.assert_close(result.double().cpu(), attended, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(case.memory.keys.cpu(), keys, atol=0, rtol=0, equal_nan=True)
    torch.testing.assert_close(case.memory.values.cpu(), values, atol=0, rtol=0, equal_nan=True)


@st.composite
def cases(draw: st.DrawFn, head_dims: dict[torch.dtype, list[int]]) -> Case:
    dtype = draw(st.sampled_from(list(head_dims)))
    tokens = st.tuples(st.integers(0, 40), st.one_of(st.just(1), st.integers(0, 12)))
    return make_case(
        draw(st.integers(0, 2**32 - 1)),
        heads=draw(st.sampled_from([1, 2, 3, 5])),
        head_dim=draw(st.sampled_from(head_dims[dtype])),
        slots=draw(st.integers(1, 4)),
        page_size=draw(st.sampled_from([1, 4, 5, 16])),
        contexts=draw(st.lists(tokens.filter(any), min_size=1, max_size=5)),
        forked=draw(st.booleans()),
        dtype=dtype,
    )


ANY_HEAD_DIM = {torch.float32: [2, 6, 8, 16, 32, 64], torch.bfloat16: [2, 6, 8, 16, 32, 64]}
COMPILED_HEAD_DIM = {torch.float32: [8, 12, 16, 32, 64], torch.bfloat16: [8, 32]}
"""Every width and dtype costs seconds of compiling where no earlier run has left them on disk."""


@settings(max_examples=60)
@given(case=cases(ANY_HEAD_DIM), fixed_shape=st.booleans())
def test_the_reference_is_what_the_interface_says(case: Case, fixed_shape: bool) -> None:
    check(case, TorchAttention(fixed_shape))


@needs_numba
@settings(max_examples=80)
@given(case=cases(COMPILED_HEAD_DIM))
def test_numba_is_what_the_interface_says(case: Case) -> None:
    check(case, NumbaAttention())


@needs_numba
@settings(max_examples=60)
@given(case=cases(COMPILED_HEAD_DIM))
def test_numba_agrees_with_the_reference(case: Case) -> None:
    tolerance = TOLERANCE[case.memory.keys.dtype]
    reference = case.copied().run(TorchAttention())
    torch.testing.assert_close(case.run(NumbaAttention()), reference, atol=tolerance, rtol=tolerance)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fixed_shape", [False, True])
def test_the_reference_agrees_with_itself_on_cuda(dtype: torch.dtype, fixed_shape: bool) -> None:
    case = make_case(0, heads=3, head_dim=32, slots=4, contexts=[(400, 1), (0, 70), (33, 1)], forked=True, dtype=dtype)
    there = case.on("cuda").run(TorchAttention(fixed_shape)).cpu()
    torch.testing.assert_close(there, case.run(TorchAttention()), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


KERNELS = [TorchAttention(), TorchAttention(fixed_shape=True), pytest.param(NumbaAttention(), marks=needs_numba)]
INDEPENDENT = KERNELS[1:]
"""Kernels that promise the same bits whatever else is in a call."""


@pytest.mark.parametrize("attention", KERNELS)
def test_chunks_of_hundreds_of_queries_and_long_contexts(attention: PagedAttention) -> None:
    contexts = [(0, 300), (130, 1), (5, 33), (700, 1), (3, 1), (64, 40)]
    case = make_case(1, heads=2, head_dim=8, slots=2, page_size=16, contexts=contexts)
    check(case, attention)


@pytest.mark.parametrize("attention", INDEPENDENT)
@settings(max_examples=25)
@given(data=st.data())
def test_a_query_is_bitwise_independent_of_the_batch(attention: PagedAttention, data: st.DataObject) -> None:
    case = data.draw(cases(COMPILED_HEAD_DIM).filter(lambda case: len(case.query) > 0))
    together = case.run(attention)
    everyone = range(len(together))
    groups = [[i] for i in everyone]
    groups += data.draw(st.lists(st.lists(st.sampled_from(everyone), min_size=1, unique=True), max_size=4))
    for group in groups:
        # The writes of those left out are already in memory.
        assert torch.equal(case.only(group).run(attention), together[group])


@pytest.mark.parametrize("attention", INDEPENDENT)
@pytest.mark.parametrize("page_size", [1, 16])
def test_a_query_is_bitwise_independent_of_a_large_batch(attention: PagedAttention, page_size: int) -> None:
    draw = np.random.default_rng(page_size)
    contexts = [(int(past), 1) for past in draw.integers(0, 200, 40)] + [(0, 60), (150, 40)]
    case = make_case(2, heads=3, head_dim=32, slots=3, page_size=page_size, contexts=contexts, forked=True)
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
    first.memory.page_table.copy_(first.memory.page_table.flip(0))
    first.memory.keys.normal_()
    first.memory.values.normal_()
    check(first.only([i for i, position in enumerate(first.queries.position.tolist()) if position == 3]), attention)


@needs_numba
@pytest.mark.parametrize(
    ("name", "wrong"), [("row", 2), ("row", -1), ("position", 12), ("position", -1), ("slot", 2), ("slot", -1)]
)
def test_numba_refuses_what_is_out_of_range(name: str, wrong: int) -> None:
    case = make_case(7, heads=2, head_dim=8, slots=2, contexts=[(6, 1), (3, 1)])
    assert case.memory.page_table.shape == (2, 3)
    indices = case.queries._replace(**{name: torch.full((2,), wrong, dtype=torch.int32)})
    with pytest.raises(IndexError, match="does not exist"):
        replace(case, queries=indices).run(NumbaAttention())


@needs_numba
@pytest.mark.parametrize("block", [0, 1])
def test_numba_refuses_a_page_that_does_not_exist(block: int) -> None:
    case = make_case(8, heads=2, head_dim=8, contexts=[(6, 1)])
    case.memory.page_table[0, block] = case.memory.depths.shape[0]
    with pytest.raises(IndexError, match="page"):
        case.run(NumbaAttention())


@needs_numba
def test_numba_refuses_a_column_that_does_not_exist() -> None:
    case = make_case(9, heads=2, head_dim=8, contexts=[(6, 1)])
    with pytest.raises(IndexError, match="column 3 with 1 slots"):
        NumbaAttention()(case.memory, case.queries, 3, 1, case.query, case.key, case.value)


@needs_numba
def test_numba_says_which_arrays_it_takes() -> None:
    case = make_case(10, heads=2, head_dim=8, contexts=[(6, 1)])
    long = Queries(*(tensor.long() for tensor in case.queries))
    with pytest.raises(TypeError, match=r"torch.int64 and contiguous; expected torch.int32"):
        replace(case, queries=long).run(NumbaAttention())
    half = case.memory._replace(keys=case.memory.keys.half())
    with pytest.raises(TypeError, match=r"memory.keys is torch.float16 .* TorchAttention"):
        replace(case, memory=half).run(NumbaAttention())
    turned = case.memory._replace(values=case.memory.values.transpose(0, 1))
    with pytest.raises(TypeError, match=r"memory.values is not contiguous"):
        replace(case, memory=turned).run(NumbaAttention())
    with pytest.raises(ValueError, match=r"key and value are \(1, 2, 8\), \(1, 2, 4\)"):
        replace(case, key=case.key[..., :4]).run(NumbaAttention())


def test_the_factory_answers_none_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("numba"):
        assert isinstance(numba_attention(), NumbaAttention)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert numba_attention() is None
