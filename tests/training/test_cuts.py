"""Threads out of whose contexts a protocol cuts: each context is replayed as it was, and counted once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
import torch

from policies import DepthPolicy, Fixed, LatentDiff, Policy
from policies.training.adaptive_pass import batches, run_policy
from policies.training.replay import Replay, replay_batches
from policies.training.thread_tokens import ThreadTokens, check_replayable, threads_in
from runtime import Answer, Engine, Limits, ProtocolError, Sampling, TagProtocol
from runtime.model.checkpoint import load_checkpoint, save_checkpoint
from tests.engine.conftest import tiny_checkpoint as tiny_checkpoint
from tests.engine.tiny import tiny_model
from traces import Trace, read, thread_tree, walk_threads

CUTTING = TagProtocol(
    spawn_open="w4",
    spawn_close="w5",
    block_open="w6",
    block_close="w7",
    cuts_block=True,
    return_open="w8",
    end=("w9",),
    delivered="w1 {message} w2 ",
    delivered_nothing="w3 ",
    longest_message=8,
    on_malformed="ignore",
)
"""As APR's: spawns stand in blocks, and what children return takes the place of the block."""


@pytest.fixture(scope="module", params=["torch", "native"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=[Fixed(3), LatentDiff(0.7, max_iterations=4)], ids=repr)
def policy(request: pytest.FixtureRequest) -> DepthPolicy:
    found = request.param
    assert isinstance(found, DepthPolicy)
    return found


async def until_it_goes_round(run: Callable[[], Awaitable[Answer]]) -> None:
    """A thread whose cut leaves its context as it was is ended by an error; what it said until then counts."""
    with suppress(ProtocolError):
        await run()


@pytest.fixture(scope="module")
def trace(tiny_checkpoint: Path, backend: str, policy: DepthPolicy, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """Trees of a model whose random tokens speak the protocol by accident."""
    directory = tmp_path_factory.mktemp("cutting")
    braid = msgspec.json.encode({"protocol": msgspec.to_builtins(CUTTING)})
    tokenizer = load_checkpoint(tiny_checkpoint).tokenizer
    save_checkpoint(directory, tiny_model(3, coda=0), tokenizer=tokenizer, braid=braid)

    async def record() -> None:
        settings: dict[str, Any] = {
            "backend": backend,
            "most_iterations": 6,
            "seed": 5,
            "prefill_chunk": 4,
            "page_size": 4,
        }
        async with (
            Engine.open(directory, policy=Policy(depth=policy), **settings) as engine,
            engine.recording(directory / "run.trace"),
            anyio.create_task_group() as group,
        ):
            for number in range(24):
                prompt, sampling, limits = [number % 5, 6], Sampling(temperature=3.0), Limits(threads=12)
                run = partial(engine.run, prompt, sampling=sampling, limits=limits, max_tokens=50)
                group.start_soon(until_it_goes_round, run)
                await anyio.lowlevel.checkpoint()

    anyio.run(record)
    return read(directory / "run.trace")


@pytest.fixture(scope="module")
def threads(trace: Trace) -> list[ThreadTokens]:
    found = threads_in(trace)
    check_replayable(trace, found)
    return found


def test_every_sampled_token_is_counted_once(trace: Trace, threads: list[ThreadTokens]) -> None:
    assert any(one.path == other.path for one, other in pairwise(threads))
    counted = sum(sum(thread.is_sampled[thread.counted_from :]) for thread in threads)
    assert counted == sum(
        len(call.kept) for recorded in walk_threads(thread_tree(trace.events)) for call in recorded.calls
    )


def test_replayed_logprobs_are_the_recorded_ones(threads: list[ThreadTokens]) -> None:
    replay, gap = Replay(tiny_model(3, coda=0), temperature=3.0), 0.0
    counted = 0
    with torch.no_grad():
        for batch in replay_batches([(thread, 0.0) for thread in threads], 400, torch.device("cpu")):
            gap = max(gap, float(((replay.logprobs(batch) - batch.logprobs).abs() * batch.is_sampled).max()))
            counted += int(batch.is_sampled.sum())
    assert counted == sum(sum(thread.is_sampled[thread.counted_from :]) for thread in threads)
    assert gap < 1e-3


def test_dense_depths_are_the_engines(threads: list[ThreadTokens], policy: DepthPolicy) -> None:
    for thread in threads:
        (batch,) = batches([thread])
        depths, _ = run_policy(tiny_model(3, coda=0), batch, policy)
        assert tuple(depths.tolist()) == thread.depths
        assert int(batch.is_counted.sum()) == len(thread.tokens) - 1 - thread.counted_from
