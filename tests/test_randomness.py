"""Counter-based randomness: right distributions, no correlations, no dependence on the batch, stable values."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from runtime.backend.randomness import NOISE_STREAM, SAMPLING_STREAM, initial_noise, thread_key, uniforms

WORD = 2**64

PINNED_KEY = 7120306904099482837
PINNED_DEEP_KEY = 5779165770887744906
PINNED_UNIFORMS = [0.5678738951683044, 0.9811951518058777, 0.18270844221115112]
PINNED_NOISE = [0.7519025206565857, 0.7600706219673157, 0.2039181888103485]


def keys_of(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % WORD
    return z ^ (z >> 31)


def uniform_by_hand(key: int, position: int, index: int, stream: int) -> float:
    """The module's definition in Python integers, without tensors."""
    golden = 0x9E3779B97F4A7C15
    by_stream = mix((key + (stream + 1) * golden) % WORD)
    by_position = mix((by_stream + (position + 1) * golden) % WORD)
    word = mix((by_position + (index + 1) * golden) % WORD)
    return ((word >> 41) + 0.5) / 2**23


@given(
    key=st.integers(-(2**63), 2**63 - 1),
    position=st.integers(0, 2**31 - 1),
    stream=st.integers(0, 5),
)
def test_uniforms_follow_their_definition(key: int, position: int, stream: int) -> None:
    drawn = uniforms(keys_of(key), keys_of(position), 5, stream)
    assert drawn.dtype == torch.float32
    assert drawn[0].tolist() == [uniform_by_hand(key, position, index, stream) for index in range(5)]


def test_pinned_values() -> None:
    """Recorded traces depend on these: a change breaks every replay."""
    assert thread_key(0, (0,)) == PINNED_KEY
    assert thread_key(7, (3, 1, 4)) == PINNED_DEEP_KEY
    drawn = uniforms(keys_of(PINNED_KEY), keys_of(5), 3, SAMPLING_STREAM)
    assert drawn[0].tolist() == pytest.approx(PINNED_UNIFORMS, abs=0)
    noise = initial_noise(keys_of(PINNED_KEY), keys_of(5), 3, 0.5)
    assert noise[0].tolist() == pytest.approx(PINNED_NOISE, abs=1e-6)


def test_thread_keys_are_the_same_in_another_process() -> None:
    code = "from runtime.backend.randomness import thread_key; print(thread_key(-3, (1, 2)))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == thread_key(-3, (1, 2))


def test_thread_keys_differ() -> None:
    paths: list[tuple[int, ...]] = [(), (1,), (11,), (1, 1), (1, 11), (11, 1), (1, 1, 1)]
    keys = {thread_key(seed, path) for seed in (0, 1, 11, -1, 2**70) for path in paths}
    assert len(keys) == 5 * len(paths)
    assert all(-(2**63) <= key < 2**63 for key in keys)


@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(0, 10_000)), min_size=1, max_size=9))
def test_rows_do_not_depend_on_the_batch(rows: list[tuple[int, int]]) -> None:
    key, position = keys_of(*(k for k, _ in rows)), keys_of(*(p for _, p in rows))
    together = initial_noise(key, position, 21, 0.2)
    for row in range(len(rows)):
        alone = initial_noise(key[row : row + 1], position[row : row + 1], 21, 0.2)
        assert torch.equal(alone[0], together[row])
    # Narrower draws are the beginning of wider ones.
    assert torch.equal(uniforms(key, position, 3, 0), uniforms(key, position, 8, 0)[:, :3])


def farthest_from_uniform(drawn: Tensor) -> float:
    """Kolmogorov-Smirnov statistic, times the root of the count."""
    ordered = drawn.flatten().double().sort().values
    count = len(ordered)
    expected = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return float((ordered - expected).abs().max()) * math.sqrt(count)


@pytest.mark.parametrize("stream", [SAMPLING_STREAM, NOISE_STREAM])
def test_uniforms_are_uniform_along_every_axis(stream: int) -> None:
    key, position = thread_key(1, (0,)), torch.arange(20_000)
    keys = torch.tensor([thread_key(1, (0, child)) for child in range(20_000)])
    along_position = uniforms(torch.full_like(position, key), position, 1, stream)
    along_key = uniforms(keys, torch.zeros_like(position), 1, stream)
    along_neighbouring_keys = uniforms(position, torch.zeros_like(position), 1, stream)
    along_index = uniforms(keys_of(key), keys_of(3), 20_000, stream)
    for drawn in (along_position, along_key, along_neighbouring_keys, along_index):
        assert drawn.min() > 0
        assert drawn.max() < 1
        assert farthest_from_uniform(drawn) < 1.95  # exceeded by chance once in a thousand


def correlation(first: Tensor, second: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]).double())[0, 1])


def test_neighbours_are_not_correlated() -> None:
    n, count = 3_000, 8
    key = torch.full((n,), thread_key(2, (0,)))
    position = torch.arange(n)
    drawn = uniforms(key, position, count, SAMPLING_STREAM)
    bound = 4.5 / math.sqrt(n * (count - 1))
    assert abs(correlation(drawn[:-1], drawn[1:])) < bound  # positions
    assert abs(correlation(drawn[:, :-1], drawn[:, 1:])) < bound  # indices
    assert abs(correlation(drawn[:-1, 1:], drawn[1:, :-1])) < bound  # a position's next index and the next position
    assert abs(correlation(drawn, uniforms(key + 1, position, count, SAMPLING_STREAM))) < bound  # keys
    assert abs(correlation(drawn, uniforms(key, position, count, NOISE_STREAM))) < bound  # streams
    assert abs(correlation(drawn[1:], uniforms(key + 1, position, count, SAMPLING_STREAM)[:-1])) < bound
    assert drawn.unique().numel() > drawn.numel() * 0.99


def test_noise_is_the_references_truncated_normal() -> None:
    std = 0.25
    noise = initial_noise(torch.full((400,), thread_key(3, (5,))), torch.arange(400), 500, std).double()
    assert noise.abs().max() <= 3 * std
    density = math.exp(-4.5) / math.sqrt(2 * math.pi)
    kept = math.erf(3 / math.sqrt(2))
    expected_std = std * math.sqrt(1 - 6 * density / kept)
    assert abs(noise.mean()) < 4.5 * std / math.sqrt(noise.numel())
    assert float(noise.std()) == pytest.approx(expected_std, rel=0.01)
    for bound in (0.5, 1.0, 2.0):
        within = float((noise.abs() < bound * std).double().mean())
        assert within == pytest.approx(math.erf(bound / math.sqrt(2)) / kept, abs=0.005)
    generator = torch.Generator().manual_seed(0)
    empty = torch.empty(200_000)
    reference = torch.nn.init.trunc_normal_(empty, 0.0, std, -3 * std, 3 * std, generator=generator).double()
    levels = torch.linspace(0.01, 0.99, 33, dtype=torch.float64)
    difference = torch.quantile(noise.flatten(), levels) - torch.quantile(reference, levels)
    assert difference.abs().max() < 0.04 * std


def test_no_std_is_no_noise() -> None:
    assert torch.equal(initial_noise(keys_of(1, 2), keys_of(0, 0), 4, 0.0), torch.zeros(2, 4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_draws_what_the_cpu_draws() -> None:
    key, position = torch.randint(-(2**62), 2**62, (64,)), torch.arange(64)
    on_gpu = uniforms(key.cuda(), position.cuda(), 33, NOISE_STREAM).cpu()
    assert torch.equal(on_gpu, uniforms(key, position, 33, NOISE_STREAM))
    noise = initial_noise(key.cuda(), position.cuda(), 33, 0.3).cpu()
    torch.testing.assert_close(noise, initial_noise(key, position, 33, 0.3), rtol=1e-5, atol=1e-6)
