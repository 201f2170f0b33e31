"""Rollouts that call tools: what trainers read of them, and compute again."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import anyio
import pytest
import torch

from policies import Fixed, Limits, Policy
from policies.training.replay import Replay, replay_batches
from policies.training.thread_tokens import check_replayable, threads_in
from runtime import Engine, LimitExceeded, PromptError, Sampling
from tests.fuzz.subjects import MOST, checkpoint_of, model_of
from tests.fuzz.tools import add_tools
from traces import Trace, read, thread_tree, walk_threads

HOT = Sampling(temperature=1.5)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """Of a model whose random tokens call a tool by accident."""
    path: Path = tmp_path_factory.mktemp("rollouts") / "run.trace"

    async def record() -> None:
        opened = Engine.open(checkpoint_of("raven"), policy=Policy(depth=Fixed(3)), most_iterations=MOST, trace=path)
        async with add_tools(opened) as engine:
            for number in range(120):
                with suppress(LimitExceeded, PromptError):
                    await engine.run(
                        [number % 32, 5, 28], sampling=HOT, max_tokens=24, limits=Limits(threads=4, tool_calls=3)
                    )

    anyio.run(record)
    return read(path)


def test_what_was_sampled_is_computed_again_around_results(trace: Trace) -> None:
    records = {record.path: record for record in walk_threads(thread_tree(trace.events))}
    callers = {path[:-1] for path, record in records.items() if record.tool is not None}
    assert len(callers) > 2, "nothing is seen where nothing is called"
    threads = threads_in(trace)
    check_replayable(trace, threads)
    assert callers <= {thread.path for thread in threads}
    assert not any(records[thread.path].tool for thread in threads)
    for thread in threads:
        spawned = any(child.tool is None for child in records[thread.path].children)
        if len(thread.path) > 1 and thread.path in callers:
            assert (thread.role == "parent") == spawned, "who calls tools alone is no parent"
    replay, gap = Replay(model_of("raven"), temperature=HOT.temperature or 1.0), 0.0
    with torch.no_grad():
        for batch in replay_batches([(thread, 0.0) for thread in threads], 400, torch.device("cpu")):
            gap = max(gap, float(((replay.logprobs(batch) - batch.logprobs).abs() * batch.is_sampled).max()))
    assert gap < 1e-3
