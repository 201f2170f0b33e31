"""Tests of the Triton kernels; `test_triton_attention.py` runs them in a process of their own.

Where there is a CUDA device the kernels are compiled and run there; elsewhere they run in Triton's interpreter, which
needs `TRITON_INTERPRET=1` before Triton is imported for the first time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from policies import Fixed
from runtime.backend.attention import PagedAttention, PagedCache, Queries
from runtime.backend.interface import CacheShape
from runtime.backend.torch import triton_attention
from runtime.backend.torch.attention import TorchAttention
from runtime.backend.torch.backend import TorchBackend
from runtime.backend.torch.cuda_graphs import CudaCapture, GraphedBackend, Step
from runtime.backend.torch.triton_attention import TritonAttention
from runtime.device.build import wire
from runtime.device.model_limits import ModelLimits
from runtime.link.commands import Extend, Finished, Generate, OpenThread
from runtime.link.sampling import Sampling
from runtime.model.specification import AttentionRule
from tests.backend.test_attention import TOLERANCE, Case, check, make_case, moved
from tests.engine.solo import Solo
from tests.engine.tiny import tiny_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Checked:
    """`PagedAttention` that takes everything to the device, and brings back what was written and attended."""

    attention: PagedAttention

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
        there = moved(paged, lambda tensor: tensor.to(DEVICE))
        attended = self.attention(
            there, queries, column, slots, rule, query.to(DEVICE), key.to(DEVICE), value.to(DEVICE)
        ).cpu()
        paged.keys.copy_(there.keys)
        paged.values.copy_(there.values)
        return attended


TRITON = Checked(TritonAttention())


@pytest.fixture
def short_splits() -> Iterator[None]:
    """Contexts of a few tokens are split as those of thousands are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_attention, "_SPLIT", 16)
        yield


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Few queries and heads: the interpreter takes milliseconds for each."""
    tokens = st.tuples(st.integers(0, 50), st.one_of(st.just(1), st.integers(0, 7)))
    return make_case(
        draw(st.integers(0, 2**32 - 1)),
        heads=draw(st.sampled_from([1, 2, 3])),
        shared=draw(st.sampled_from([1, 2, 3])),
        head_dim=draw(st.sampled_from([2, 6, 16, 24])),
        slots=draw(st.integers(1, 4)),
        page_size=draw(st.sampled_from([1, 4, 5, 16])),
        contexts=draw(st.lists(tokens.filter(any), min_size=1, max_size=3)),
        forked=draw(st.booleans()),
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16])),
        holed=draw(st.booleans()),
    )


def in_order(case: Case) -> Case:
    """The same with the queries of a thread side by side, as the engine asks, so that they form tiles."""
    row, position, _ = (tensor.numpy() for tensor in case.queries)
    return case.only(np.lexsort((position, row)).tolist())


@settings(max_examples=8)
@given(case=cases(), ordered=st.booleans())
def test_triton_is_what_the_interface_says(case: Case, ordered: bool) -> None:
    check(in_order(case) if ordered else case, TRITON)


@pytest.mark.usefixtures("short_splits")
@settings(max_examples=8)
@given(case=cases(), ordered=st.booleans())
def test_triton_agrees_with_the_reference_over_split_contexts(case: Case, ordered: bool) -> None:
    case = in_order(case) if ordered else case
    tolerance = TOLERANCE[case.paged.keys.dtype]
    reference = case.copied().run(TorchAttention())
    torch.testing.assert_close(case.run(TRITON), reference, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("shared", "dtype"), [(1, torch.float32), (4, torch.bfloat16)])
def test_a_chunk_of_a_prompt_and_a_context_of_two_splits(shared: int, dtype: torch.dtype) -> None:
    contexts = [(700, 2), (530, 35), (3, 1)]
    case = make_case(1, heads=1, shared=shared, head_dim=16, slots=2, page_size=16, dtype=dtype, contexts=contexts)
    check(in_order(case), TRITON)


@pytest.mark.usefixtures("short_splits")
@pytest.mark.parametrize("known", [True, False])
def test_a_query_is_bitwise_independent_of_the_batch(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether or not the host knows how long the contexts of the others, or its own, are."""
    case = in_order(make_case(2, heads=2, head_dim=8, slots=3, contexts=[(40, 1), (0, 20), (3, 1)], forked=True))
    together = case.run(TRITON)
    if not known:
        monkeypatch.setattr(triton_attention, "reach", lambda paged, queries: paged.page_table.shape[1] * 4)
    draw = np.random.default_rng(0)
    for size in (1, 2, 7):
        group = draw.permutation(len(together))[:size].tolist()
        assert torch.equal(case.only(group).run(TRITON), together[group])


def test_a_token_that_nothing_iterated_is_read_in_the_first_slot() -> None:
    case = make_case(6, heads=2, head_dim=8, slots=3, contexts=[(9, 1), (4, 2)])
    case.paged.depths[case.paged.page_table[:, 0].long(), :2] = 0
    torch.testing.assert_close(case.run(TRITON), case.run(TorchAttention()), atol=1e-5, rtol=1e-5)


def test_keys_and_values_are_rounded_to_the_memory_and_may_be_strided() -> None:
    case = make_case(3, heads=4, head_dim=8, slots=2, contexts=[(9, 1), (2, 5)], dtype=torch.bfloat16)
    fused = torch.randn(len(case.query), 3, 4, 8, generator=torch.Generator().manual_seed(0))
    check(replace(case, query=fused[:, 0], key=fused[:, 1], value=fused[:, 2]), TRITON)
    crossed = fused.transpose(2, 3).contiguous().transpose(2, 3)
    check(replace(case, query=crossed[:, 0], key=crossed[:, 1], value=crossed[:, 2]), TRITON)


def test_without_queries_nothing_is_written() -> None:
    case = make_case(4, heads=2, head_dim=8, contexts=[(6, 0), (3, 0)])
    assert case.run(TRITON).shape == (0, 2, 8)
    check(case, TRITON)


def test_triton_says_which_arrays_it_takes() -> None:
    case = make_case(5, heads=2, head_dim=8, contexts=[(6, 1)])
    half = case.paged._replace(keys=case.paged.keys.half())
    with pytest.raises(TypeError, match=r"paged.keys is torch.float16; .* TorchAttention"):
        replace(case, paged=half).run(TRITON)
    with pytest.raises(ValueError, match=r"key and value are \(1, 2, 8\), \(1, 2, 4\)"):
        replace(case, key=case.key[..., :4]).run(TRITON)
    with pytest.raises(ValueError, match=r"a multiple of 2"):
        replace(case, query=torch.zeros(1, 3, 8)).run(TRITON)


def again(step: Step) -> Step:
    """`Capture` that runs the step anew: what Triton's interpreter can do."""
    step()
    return step


def test_captured_ticks_with_the_kernel_say_what_eager_ones_say() -> None:
    model = tiny_model(2).to(DEVICE)
    cache = CacheShape(pages=16, page_size=4, slots=2, rows=4, pages_per_row=16, lanes=4)
    limits = ModelLimits(max_context=64, vocab=40, mean_recurrence=3, most_iterations=3, shares_prefixes=True)
    capture = CudaCapture(torch.device(DEVICE)) if DEVICE == "cuda" else again
    backends: list[TorchBackend] = [
        GraphedBackend(model, cache, TritonAttention(), capture, (1, 2, 3), state_std=0.0),
        TorchBackend(model, cache, TritonAttention(), state_std=0.0, deterministic=False),
        TorchBackend(model, cache, TorchAttention(), state_std=0.0, deterministic=False),
    ]
    said = []
    for backend in backends:
        solo = Solo(wire(backend, limits, 4))
        for number, (prompt, depth) in enumerate([((5, 6, 7, 8, 9), 2), ((1,), 3), ((2, 3), 1)]):
            solo.send(
                OpenThread(thread=(number,), seed=0, depth=Fixed(depth)),
                Extend((number,), prompt),
                Generate(thread=(number,), max_tokens=3, sampling=Sampling()),
            )
        said.append({report.thread: report for report in solo.run() if isinstance(report, Finished)})
    assert len(said[0]) == 3
    for thread, report in said[0].items():
        for other in said[1:]:
            assert report.tokens == other[thread].tokens
            np.testing.assert_allclose(report.logprobs, other[thread].logprobs, atol=1e-4)
