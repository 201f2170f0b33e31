"""Captured ticks against eager ones, with a recorder of operators in the place of CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import KL, DepthPolicy, Fixed, LatentDiff
from runtime.backend.interface import CacheShape
from runtime.backend.torch.attention import TorchAttention
from runtime.backend.torch.backend import TorchBackend
from runtime.backend.torch.cuda_graphs import LARGEST, CudaCapture, GraphedBackend, batch_buckets
from runtime.device.build import wire
from runtime.device.model_limits import ModelLimits
from runtime.device.settings import EngineSettings
from runtime.link.commands import CloseThread, Extend, Finished, Generate, Merge, OpenThread
from runtime.link.sampling import Sampling
from runtime.model.architecture import parse_config
from runtime.model.parameters import initialise
from runtime.model.transformer import Transformer
from tests.backend.capturing import PlanlessAttention, TapeCapture
from tests.engine.solo import Solo
from tests.engine.tiny import tiny_model

MOST = 5
BUCKETS = (1, 2, 4, 6)


def shape(model: Transformer, *, lanes: int = 12, page_size: int = 4, slots: int = MOST, pages: int = 40) -> CacheShape:
    return CacheShape(
        pages=pages,
        page_size=page_size,
        slots=slots,
        rows=lanes,
        pages_per_row=-(-model.specification.max_context // page_size),
        lanes=lanes,
    )


def graphed(model: Transformer, cache: CacheShape, state_std: float = 0.0) -> tuple[GraphedBackend, TapeCapture]:
    capture = TapeCapture()
    backend = GraphedBackend(model, cache, PlanlessAttention(), capture, BUCKETS, state_std=state_std)
    return backend, capture


def eager(model: Transformer, cache: CacheShape, state_std: float = 0.0) -> TorchBackend:
    return TorchBackend(model, cache, TorchAttention(), state_std=state_std, deterministic=False)


def solo(model: Transformer, backend: TorchBackend) -> Solo:
    lanes = backend.cache.lanes
    limits = ModelLimits(
        max_context=model.specification.max_context,
        vocab=model.specification.vocab_size,
        mean_recurrence=model.specification.mean_recurrence,
        most_iterations=MOST,
        shares_prefixes=True,
    )
    return Solo(wire(backend, limits, lanes))


def tiny_llama() -> Transformer:
    config = parse_config(
        Path("config.json"),
        {
            "model_type": "llama",
            "hidden_size": 16,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 6,
            "intermediate_size": 24,
            "vocab_size": 40,
            "max_position_embeddings": 64,
            "num_hidden_layers": 2,
        },
    )
    model = Transformer(config)
    initialise(model, torch.Generator().manual_seed(0))
    return model.eval()


MODELS: dict[str, Callable[[], Transformer]] = {
    "raven": lambda: tiny_model(1),
    "deep raven": lambda: tiny_model(2, prelude=2, core=2, coda=1),
    "bare raven": lambda: tiny_model(3, prelude=0, coda=0),
    "llama": tiny_llama,
}


@st.composite
def programs(draw: st.DrawFn) -> list[tuple[list[int], DepthPolicy, Sampling, int]]:
    """Threads that run together: prompt, policy, sampling and tokens to generate."""
    policies = [Fixed(1), Fixed(3), Fixed(MOST), LatentDiff(0.3, max_iterations=MOST), KL(0.05, max_iterations=MOST)]
    thread = st.tuples(
        st.lists(st.integers(0, 39), min_size=1, max_size=20),
        st.sampled_from(policies),
        st.sampled_from([Sampling(), Sampling(temperature=0.7)]),
        st.integers(1, 6),
    )
    return draw(st.lists(thread, min_size=1, max_size=7))


def run(backend: Solo, program: Sequence[tuple[list[int], DepthPolicy, Sampling, int]]) -> list[Finished]:
    for number, (prompt, policy, sampling, tokens) in enumerate(program):
        path = (number,)
        backend.send(
            OpenThread(thread=path, seed=number, depth=policy),
            Extend(path, tuple(prompt)),
            Generate(thread=path, max_tokens=tokens, sampling=sampling),
        )
    finished = {report.thread: report for report in backend.run() if isinstance(report, Finished)}
    backend.send(*(CloseThread((number,)) for number in range(len(program))))
    backend.run()
    return [finished[(number,)] for number in range(len(program))]


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=6)
@given(data=st.data())
def test_captured_ticks_say_what_eager_ones_say(name: str, data: st.DataObject) -> None:
    model = MODELS[name]()
    cache = shape(
        model,
        page_size=data.draw(st.sampled_from([1, 4, 16])),
        slots=data.draw(st.sampled_from([1, 2, MOST])),
        pages=data.draw(st.sampled_from([64, 300])),
    )
    noise = data.draw(st.sampled_from([0.0, 0.3]))
    backend, _ = graphed(model, cache, noise)
    captured, reference = solo(model, backend), solo(model, eager(model, cache, noise))
    for program in data.draw(st.lists(programs(), min_size=1, max_size=2)):
        for ours, theirs in zip(run(captured, program), run(reference, program), strict=True):
            assert (ours.tokens, ours.depths, ours.work.iterations) == (
                theirs.tokens,
                theirs.depths,
                theirs.work.iterations,
            )
            np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-4)
    assert captured.core.scheduler.kv_cache.pool.used == reference.core.scheduler.kv_cache.pool.used


def test_every_bucket_is_captured_once_when_the_backend_is_made() -> None:
    model = tiny_model()
    backend, capture = graphed(model, shape(model))
    assert len(capture.results) == 3 * len(BUCKETS)
    assert {len(result) for result in capture.results} == set(BUCKETS)
    run(solo(model, backend), [([1, 2, 3], Fixed(2), Sampling(), 4)] * 5)
    assert len(capture.results) == 3 * len(BUCKETS)
    assert capture.replays


def test_a_batch_beyond_the_largest_bucket_runs_eagerly() -> None:
    model = tiny_model()
    backend, capture = graphed(model, shape(model))
    program = [(list(range(7)), Fixed(3), Sampling(), 1)]
    (finished,) = run(solo(model, backend), program)
    assert capture.replays == 0
    assert finished.tokens == run(solo(model, eager(model, shape(model))), program)[0].tokens


def test_padding_touches_nothing_that_threads_have() -> None:
    model = tiny_model()
    cache = shape(model)
    backend, capture = graphed(model, cache)
    paged = backend._paged
    scratch = cache.pages
    for stored in (paged.keys, paged.values):
        assert not stored[:, :scratch].any()
        assert stored[:, scratch].any()
    assert not paged.depths[:scratch].any()
    assert not backend._state[: cache.lanes].any()
    assert backend.page_table.shape == (cache.rows, cache.pages_per_row)
    assert not backend.page_table.any()
    assert backend.cache == cache

    # Three tokens in a bucket of four, one thread: of the pages, only its own is written.
    run(solo(model, backend), [([5, 6, 7], Fixed(2), Sampling(), 1)])
    assert capture.replays
    written = paged.keys.abs().sum((0, 2, 3, 4)).nonzero()[:, 0].tolist()
    assert len(written) == 2
    assert scratch in written


def test_a_replay_reads_nothing_but_its_buffers() -> None:
    """The same captured steps, one thread after another: lanes, rows, positions, slots and depths differ each time."""
    model = tiny_model(4)
    cache = shape(model, slots=2)
    backend, capture = graphed(model, cache)
    captured, reference = solo(model, backend), solo(model, eager(model, cache))
    for length in (1, 2, 3, 4, 6):
        program = [([length, 3, 9, 1, 2, 5][:length], Fixed(MOST), Sampling(), 3)] * 2
        assert [f.tokens for f in run(captured, program)] == [f.tokens for f in run(reference, program)]
    assert capture.replays > 20


@pytest.mark.parametrize("page_size", [1, 4])
def test_a_replay_reads_rows_that_have_got_holes_since_the_capture(page_size: int) -> None:
    model = tiny_model(5)
    cache = shape(model, page_size=page_size, pages=200)
    cache = msgspec.structs.replace(cache, pages_per_row=2 * cache.pages_per_row)
    backend, capture = graphed(model, cache)
    said = []
    for each in (solo(model, backend), solo(model, eager(model, cache))):
        finished = run_merged(each)
        assert each.core.threads[0,].layout is not None
        each.send(*(CloseThread(path) for path in ((0,), (0, 0), (0, 1))))
        each.run()
        said.append([*finished, *run(each, [([3, 1, 2], Fixed(3), Sampling(), 4)] * 3)])
    assert capture.replays
    for ours, theirs in zip(*said, strict=True):
        assert ours.tokens == theirs.tokens
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-4)


def run_merged(backend: Solo) -> list[Finished]:
    """Two children that generate are merged into the thread they were forked from, which then goes on."""
    finished = []
    backend.send(OpenThread(thread=(0,), seed=0, depth=Fixed(3)), Extend((0,), (7, 8, 9, 10, 11)))
    for child in range(2):
        path = (0, child)
        backend.send(
            OpenThread(thread=path, seed=child, depth=Fixed(3), inherits=(0,)),
            Extend(path, (20 + child,)),
            Generate(thread=path, max_tokens=3 + child, sampling=Sampling()),
        )
    finished += [report for report in backend.run() if isinstance(report, Finished)]
    backend.send(*(Generate(thread=(0, child), max_tokens=0, sampling=Sampling(), fills=True) for child in range(2)))
    backend.run()
    backend.send(
        Merge((0,), ((0, 0), (0, 1))), Extend((0,), (4,)), Generate(thread=(0,), max_tokens=6, sampling=Sampling())
    )
    finished += [report for report in backend.run() if isinstance(report, Finished)]
    assert len(finished) == 3
    return sorted(finished, key=lambda report: report.thread)


def test_a_capture_refuses_what_the_host_would_wait_for() -> None:
    numbers = torch.tensor([1.0, 2.0])
    for step in (lambda: numbers[numbers > 1], lambda: numbers * numbers.sum().item(), lambda: numbers.nonzero()):
        with pytest.raises(RuntimeError, match="makes the host wait"):
            TapeCapture()(step)


def test_a_capture_freezes_what_python_decided() -> None:
    """The recorder is no second run of the same Python: a number taken from the host stays as it was."""
    host, numbers = [2.0], torch.tensor([1.0])
    replay = TapeCapture()(lambda: numbers * host[0])
    host[0], numbers[0] = 5.0, 3.0
    assert replay().item() == 6.0


def test_attention_that_plans_on_the_host_is_refused() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match=r"TorchAttention, which plans .* install triton"):
        GraphedBackend(model, shape(model), TorchAttention(), TapeCapture(), BUCKETS, state_std=0.0)


def test_graphs_need_a_cuda_device() -> None:
    with pytest.raises(ValueError, match=r"cuda_graphs is True and the model is on cpu"):
        CudaCapture(torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"deterministic": True}, "exclude each other"), ({"attention": "torch"}, "needs attention 'auto'")],
)
def test_settings_that_graphs_exclude_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineSettings(cuda_graphs=True, **changes)


@pytest.mark.parametrize(
    ("lanes", "buckets"),
    [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (64, (1, 2, 4, 8, 16, 32, 64))],
)
def test_buckets_are_powers_of_two_and_all_lanes(lanes: int, buckets: tuple[int, ...]) -> None:
    assert batch_buckets(lanes) == buckets


def test_no_bucket_is_beyond_the_largest() -> None:
    assert batch_buckets(10 * LARGEST)[-1] == LARGEST
