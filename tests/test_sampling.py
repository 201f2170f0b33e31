"""The sampler against naive implementations of the references' rules, one row at a time."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec import convert
from numpy.typing import NDArray
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from runtime.backend.sampler import Sampled, filtered_probabilities, sample
from runtime.link.sampling import FilterRule, Sampling

VOCABULARY = 11
Float64 = NDArray[np.float64]


def naive_distribution(logits: Float64, sampling: Sampling, context: list[int]) -> Float64:
    """Probabilities one row is drawn from, after `_sample_next_token` of the reference."""
    logits = logits.copy()
    for token in set(context):
        logits[token] *= sampling.repetition_penalty if logits[token] < 0 else 1 / sampling.repetition_penalty
    logits = (logits - logits.max()) / (sampling.temperature or 1.0)
    p: Float64 = np.exp(logits) / np.exp(logits).sum()
    if sampling.is_greedy:
        return p
    if sampling.filters == "transformers":
        return naively_filtered(p, sampling)
    if sampling.top_k is not None:
        p = np.where(p < np.sort(p)[::-1][: sampling.top_k][-1], 0.0, p)
    if sampling.top_p is not None:
        order = sorted(range(len(p)), key=lambda token: (-p[token], token))
        cumulative = 0.0
        for place, token in enumerate(order):
            cumulative += p[token]
            # float32 sums in the sampler: its own rounding decides exact borders, which the strategies avoid.
            if cumulative > sampling.top_p + 1e-6 and place > 0:
                order = order[:place]
                break
        p = np.where(np.isin(np.arange(len(p)), order), p, 0.0)
    if sampling.min_p is not None:
        p = np.where(p < sampling.min_p * p.max() * (1 - 1e-6), 0.0, p)
    normalised: Float64 = p / p.sum()
    return normalised


def naively_filtered(p: Float64, sampling: Sampling) -> Float64:
    """As `LogitsProcessorList` of transformers does it: what each filter leaves adds up to 1 for the next."""
    if sampling.top_k is not None:
        p = np.where(p < np.sort(p)[::-1][: sampling.top_k][-1], 0.0, p)
        p = p / p.sum()
    if sampling.top_p is not None:
        kept: set[int] = set()
        total = 0.0
        for token in sorted(range(len(p)), key=lambda token: (-p[token], -token)):
            if total < sampling.top_p - 1e-6 or not kept:
                kept.add(token)
            total += p[token]
        p = np.array([p[token] if token in kept else 0.0 for token in range(len(p))])
        p = p / p.sum()
    if sampling.min_p is not None:
        p = np.where(p < sampling.min_p * p.max() * (1 - 1e-6), 0.0, p)
    normalised: Float64 = p / p.sum()
    return normalised


def naive_token(p: Float64, uniform: float) -> int:
    return int(np.flatnonzero(np.cumsum(p) > uniform)[0])


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.sampled_from([None, 1, 3, 50]),
    top_p=st.sampled_from([None, 0.0713, 0.5171, 0.9317, 1.0]),
    min_p=st.sampled_from([None, 0.0, 0.0531, 0.4177]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
    filters=st.sampled_from(["transformers", "huginn"]),
    logprobs=st.sampled_from([0, 0, 2]),
)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, NDArray[np.int32], list[Sampling], Tensor, dict[int, NDArray[np.int32]]]:
    n = draw(st.integers(1, 6))
    distinct = draw(st.lists(samplings, min_size=1, max_size=3))
    which = np.array(draw(st.lists(st.integers(0, len(distinct) - 1), min_size=n, max_size=n)), np.int32)
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    # Quantised logits make ties common.
    logits = np.round(generator.normal(0, 2, (n, VOCABULARY)) * 4) / 4
    uniforms = generator.uniform(0.001, 0.999, n)
    contexts = {
        row: generator.integers(0, VOCABULARY, generator.integers(0, 7)).astype(np.int32)
        for row in range(n)
        if distinct[which[row]].repetition_penalty != 1.0
    }
    return (
        torch.tensor(logits, dtype=torch.float32),
        which,
        distinct,
        torch.tensor(uniforms, dtype=torch.float32),
        contexts,
    )


@given(batches())
def test_rows_match_the_naive_implementation(
    batch: tuple[Tensor, NDArray[np.int32], list[Sampling], Tensor, dict[int, NDArray[np.int32]]],
) -> None:
    logits, which, distinct, uniforms, contexts = batch
    before = logits.clone()
    sampled = sample(logits, which, distinct, uniforms, contexts, entropies=True)
    assert torch.equal(logits, before)
    assert sampled.entropy is not None
    for row in range(len(which)):
        sampling = distinct[which[row]]
        context = contexts[row].tolist() if row in contexts else []
        expected = naive_distribution(logits[row].double().numpy(), sampling, context)
        token = int(sampled.token[row])
        assert expected[token] > 0
        if sampling.is_greedy:
            assert expected[token] >= expected.max() * (1 - 1e-6)
        else:
            border = np.abs(np.cumsum(expected) - float(uniforms[row])).min()
            assert border < 1e-5 or token == naive_token(expected, float(uniforms[row]))
        assert float(sampled.logprob[row]) == pytest.approx(math.log(expected[token]), abs=1e-4)
        plain = naive_distribution(logits[row].double().numpy(), Sampling(temperature=1.0), [])
        assert float(sampled.entropy[row]) == pytest.approx(-(plain * np.log(plain)).sum(), abs=1e-4)
        if sampling.logprobs:
            top = sampled.top[row]
            assert len(top) == min(sampling.logprobs, np.count_nonzero(expected))
            best = np.sort(expected)[::-1][: len(top)]
            assert list(top.values()) == pytest.approx(np.log(best).tolist(), abs=1e-4)
            assert all(value == pytest.approx(math.log(expected[token]), abs=1e-4) for token, value in top.items())
        elif sampled.top:
            assert sampled.top[row] == {}


@given(batches())
def test_a_row_alone_gives_the_same_bits(
    batch: tuple[Tensor, NDArray[np.int32], list[Sampling], Tensor, dict[int, NDArray[np.int32]]],
) -> None:
    logits, which, distinct, uniforms, contexts = batch
    together = sample(logits, which, distinct, uniforms, contexts, entropies=True)
    for row in range(len(which)):
        mine = {0: contexts[row]} if row in contexts else {}
        alone = sample(
            logits[row : row + 1], which[row : row + 1], distinct, uniforms[row : row + 1], mine, entropies=True
        )
        assert alone.token[0] == together.token[row]
        assert alone.logprob[0] == together.logprob[row]
        assert alone.entropy is not None
        assert together.entropy is not None
        assert alone.entropy[0] == together.entropy[row]
        assert (alone.top[0] if alone.top else {}) == (together.top[row] if together.top else {})


def rows_of(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> Sampled:
    n = len(uniforms)
    return sample(logits.expand(n, -1), np.zeros(n, np.int32), (sampling,), uniforms, {})


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.6, top_k=4),
        Sampling(temperature=1.5, top_p=0.8, filters="huginn"),
        Sampling(temperature=1.0, top_k=6, top_p=0.9, min_p=0.1, filters="huginn"),
        Sampling(temperature=1.0, top_k=6, top_p=0.9, min_p=0.1, filters="transformers"),
    ],
)
def test_a_grid_of_uniforms_gives_the_exact_distribution(sampling: Sampling) -> None:
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 2
    n = 40_000
    drawn = rows_of(logits, sampling, (torch.arange(n, dtype=torch.float32) + 0.5) / n)
    shares = torch.bincount(drawn.token, minlength=VOCABULARY).double() / n
    expected = naive_distribution(logits[0].double().numpy(), sampling, [])
    assert np.abs(shares.numpy() - expected).max() < 2 / n + 1e-6
    assert not shares.numpy()[expected == 0].any()


@pytest.mark.parametrize("uniform", [0.0, 2.0**-24, 1e-30, 1 - 2.0**-24, 1.0])
@pytest.mark.parametrize("dropped", ["both ends", "first", "last"])
def test_the_ends_of_the_uniform_give_tokens_that_can_be_drawn(uniform: float, dropped: str) -> None:
    logits = torch.zeros(1, 9)
    if dropped != "last":
        logits[0, :3] = -200.0
    if dropped != "first":
        logits[0, -3:] = -200.0
    drawn = rows_of(logits, Sampling(temperature=1.0, min_p=0.5), torch.tensor([uniform]))
    allowed = (logits[0] == 0).nonzero()[:, 0]
    assert drawn.token[0] == (allowed[0] if uniform < 0.5 else allowed[-1])
    assert torch.isfinite(drawn.logprob).all()


@pytest.mark.parametrize("size", [7, 40_000, 100_001])
def test_greedy_ties_go_to_the_lowest_id(size: int) -> None:
    logits = torch.full((3, size), -1.0)
    logits[0, [2, size - 1]] = 4.0
    logits[1, [size - 3, size - 2]] = 4.0
    greedy = sample(logits, np.zeros(3, np.int32), (Sampling(),), None, {})
    assert greedy.token.tolist() == [2, size - 3, 0]
    assert greedy.entropy is None
    assert greedy.top == ()


def test_greedy_logprob_is_that_of_the_penalised_logits() -> None:
    logits = torch.tensor([[2.0, 1.9, -1.0]])
    sampling = Sampling(repetition_penalty=2.0)
    drawn = sample(logits, np.zeros(1, np.int32), (sampling,), None, {0: np.array([0, 0, 2], np.int32)})
    assert drawn.token.tolist() == [1]
    assert drawn.logprob.tolist() == pytest.approx(torch.log_softmax(torch.tensor([1.0, 1.9, -2.0]), 0)[1:2].tolist())


EXTREMES = [5e-324, 1e-46, 1e-45, 1e-39, 1e-37, 1e39, 1e300]
"""Temperatures of which float32 has some and takes others for 0 or infinity."""


@pytest.mark.parametrize("filters", ["huginn", "transformers"])
@pytest.mark.parametrize("temperature", EXTREMES)
@pytest.mark.parametrize("top_k", [None, 2])
def test_any_temperature_gives_finite_logprobs(temperature: float, filters: str, top_k: int | None) -> None:
    logits = torch.tensor([[90.0, 80.0, -3e38], [-90.0, -50.0, -50.5], [3.0, 3e38, -1.0]])
    sampling = convert(
        {"temperature": temperature, "top_k": top_k, "top_p": 0.9, "min_p": 0.0, "filters": filters}, Sampling
    )
    drawn = sample(logits, np.zeros(3, np.int32), (sampling,), torch.tensor([0.01, 0.5, 0.3]), {}, True)
    assert torch.isfinite(drawn.logprob).all()
    if temperature < 1:
        assert drawn.token.tolist() == [0, 1, 1]
        assert drawn.logprob.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("penalty", [5e-324, 1e-46, 1e-30, 1e30, 1e300])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_any_penalty_gives_finite_logprobs(penalty: float, temperature: float) -> None:
    logits = torch.tensor([[0.0, 9.0, -9.0, 1e30, -1e30, 2.0]])
    sampling = Sampling(temperature=temperature, repetition_penalty=penalty)
    drawn = sample(
        logits, np.zeros(1, np.int32), (sampling,), torch.tensor([0.5]), {0: np.array([0, 1, 2, 3, 4], np.int32)}
    )
    assert torch.isfinite(drawn.logprob).all()


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=1.0), Sampling(temperature=1.0, top_k=2), Sampling(logprobs=2)]
)
def test_logits_that_are_not_finite_have_no_logprob(wrong: float, sampling: Sampling) -> None:
    logits = torch.tensor([[3e38, 3e38, -3e38], [1.0, wrong, 2.0], [0.0, 0.0, 1.0]])
    drawn = sample(logits, np.zeros(3, np.int32), (sampling,), torch.full((3,), 0.5), {})
    assert torch.isfinite(drawn.logprob).tolist() == [True, False, True]


def kept(probabilities: list[float], rule: FilterRule, **filters: Any) -> list[int]:
    """Tokens that filters leave."""
    logits = torch.log(torch.tensor([probabilities]))
    weights = filtered_probabilities(logits, Sampling(temperature=1.0, **filters), rule)
    return (weights[0] > 0).nonzero()[:, 0].tolist()


def test_huginns_filters() -> None:
    """Its top-p drops the token that crosses, of what the softmax of all tokens gave, and keeps the lowest ids."""
    assert kept([0.4, 0.2, 0.2, 0.2], "huginn", top_k=2) == [0, 1, 2, 3]
    assert kept([0.4, 0.2, 0.2, 0.2], "huginn", top_p=0.1) == [0]
    assert kept([0.4, 0.2, 0.2, 0.2], "huginn", top_p=0.7) == [0, 1]
    assert kept([0.6, 0.3, 0.08, 0.02], "huginn", top_p=0.7) == [0]
    assert kept([0.5, 0.3, 0.1, 0.1], "huginn", top_k=2, top_p=0.9) == [0, 1]


def test_filters_of_transformers() -> None:
    """Its top-p keeps the token that crosses, of what top-k left."""
    assert kept([0.6, 0.3, 0.08, 0.02], "transformers", top_p=0.7) == [0, 1]
    assert kept([0.6, 0.3, 0.08, 0.02], "transformers", top_p=0.5) == [0]
    assert kept([0.4, 0.3, 0.2, 0.1], "transformers", top_p=0.65) == [0, 1]
    assert kept([0.4, 0.3, 0.2, 0.1], "transformers", top_k=2, top_p=0.55) == [0]
    assert kept([0.4, 0.3, 0.2, 0.1], "transformers", top_p=1e-46) == [0]


def test_a_sampling_may_ask_for_the_other_rules() -> None:
    logits = torch.log(torch.tensor([[0.6, 0.3, 0.08, 0.02]])).expand(2, -1)
    uniforms = torch.tensor([0.99, 0.99])

    def tokens(rule: FilterRule, filters: str) -> list[int]:
        sampling = convert({"temperature": 1.0, "top_p": 0.7, "filters": filters}, Sampling)
        return sample(logits, np.zeros(2, np.int32), (sampling,), uniforms, {}, rule=rule).token.tolist()

    assert tokens("huginn", "model") == tokens("transformers", "huginn") == [0, 0]
    assert tokens("transformers", "model") == tokens("huginn", "transformers") == [1, 1]


@given(
    st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12),
    st.sampled_from([None, 1, 3, 50]),
    st.sampled_from([None, 0.0713, 0.5171, 0.9317, 1.0]),
    st.sampled_from([None, 0.0, 0.0531, 0.4177, 1.0]),
    st.sampled_from([0.3, 1.0, 2.5]),
)
def test_transformers_keeps_the_same_tokens(
    logits: list[float], top_k: int | None, top_p: float | None, min_p: float | None, temperature: float
) -> None:
    scores = torch.tensor([logits])
    # As the sampler does first, so that both round alike.
    scores -= scores.max()
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    ours = filtered_probabilities(scores, sampling, "transformers")
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k is not None:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p is not None:
        warpers.append(MinPLogitsWarper(min_p))
    theirs = torch.softmax(warpers(torch.LongTensor([[0]]), scores), dim=-1)
    assert torch.equal(ours, theirs)


def test_rows_with_a_temperature_need_uniforms() -> None:
    with pytest.raises(ValueError, match="need uniforms"):
        sample(torch.zeros(1, 3), np.zeros(1, np.int32), (Sampling(temperature=1.0),), None, {})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("logprobs", -1),
    ],
)
def test_values_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        msgspec.structs.replace(Sampling(), **{field: value})
    if math.isfinite(value):
        with pytest.raises(msgspec.ValidationError, match=field):
            msgspec.json.decode(msgspec.json.encode({field: value}), type=Sampling)


def test_a_sampling_travels_as_json() -> None:
    sampling = Sampling(temperature=0.7, top_k=40, min_p=0.02, logprobs=3)
    assert msgspec.json.decode(msgspec.json.encode(sampling), type=Sampling) == sampling
