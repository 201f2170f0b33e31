"""What holds of merged joins besides their values: memory, traces, limits, and what is refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.to_thread
import pytest

from policies import Fixed, Policy
from runtime import Engine, EngineClosed, ReasoningThread, Sampling, ThreadStateError
from runtime.device.settings import EngineSettings
from runtime.loading.local import open_device
from runtime.threads.session import Session
from tests.joins.test_goldens import HOME
from traces import Verification, read, thread_tree, verify
from traces.context import context_of

pytestmark = pytest.mark.anyio
BACKENDS = ["torch", "native"]
SAMPLING = Sampling(temperature=0.7)
Thinks = Callable[[ReasoningThread], Awaitable[None]]


def opened(**settings: Any) -> Engine:
    sizes: dict[str, Any] = {"page_size": 4, "num_pages": 64, "seed": 3, "sampling": SAMPLING}
    return Engine.open(HOME, **sizes | settings)


def thinks(tokens: int) -> Thinks:
    async def think(thread: ReasoningThread) -> None:
        if tokens:
            await thread.generate(tokens)

    return think


async def nested(thread: ReasoningThread) -> None:
    await thread.generate(3)
    children = [thread.fork([30 + i], program=thinks(2 + i)) for i in range(2)]
    await thread.join(children, merge=True)
    thread.append([41])
    await thread.generate(2)


async def intrude(engine: Engine) -> None:
    """Takes most pages of a small pool."""
    async with engine.thread(range(100, 150)) as other:
        await other.generate(20)


async def program(engine: Engine) -> list[tuple[float, ...]]:
    """Two merged joins, the first with a nested one in it, and others that take pages after each."""
    said: list[tuple[float, ...]] = []
    async with engine.thread([5, 6, 7, 8, 9, 20, 21]) as root:
        children = [root.fork([10 + i], program=each) for i, each in enumerate([thinks(9), nested, thinks(1)])]
        await root.join(children, merge=True)
        await intrude(engine)
        root.append([22, 23])
        said.append((await root.generate(5)).logprobs)
        children = [root.fork([24], program=thinks(4)), root.fork([25], program=thinks(0))]
        await root.join(children, merge=True)
        root.append([26])
        await intrude(engine)
        said.append((await root.generate(6)).logprobs)
        said.append(root.tokens)
    return said


@pytest.mark.parametrize("backend", BACKENDS)
async def test_merged_contexts_that_were_evicted_are_computed_again_to_the_same_values(backend: str) -> None:
    async with opened(backend=backend, num_pages=300, deterministic=True) as engine:
        alone = await program(engine)
        assert engine.statistics.recomputed == 0
    for pages in (24, 28):
        async with opened(backend=backend, num_pages=pages, deterministic=True) as engine:
            assert await program(engine) == alone
        assert engine.statistics.recomputed > 0
        assert engine.statistics.pages_used == 0


@pytest.mark.parametrize("backend", BACKENDS)
async def test_traces_of_merged_joins_are_played_back_and_verified(
    backend: Literal["torch", "native"], tmp_path: Path
) -> None:
    path = tmp_path / "run.trace"
    async with opened(backend=backend, num_pages=24, trace=path) as engine:
        said = await program(engine)
    trace = read(path)
    async with Engine.playback(trace, sampling=SAMPLING) as engine:
        assert await program(engine) == said
    # Pools as large as that hold all threads, and decide nothing.
    settings = EngineSettings(backend=backend, page_size=4, num_pages=300)

    def execute() -> Verification:
        return verify(trace, open_device(HOME, settings, policy=None, trace=None, seed=0).device)

    found = await anyio.to_thread.run_sync(execute)
    assert found.equal, found
    assert context_of(thread_tree(trace.events)[0]).tokens == said[-1]


async def test_an_engine_that_is_left_before_children_are_filled_ends_the_join(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, acquire = opened(), Session.acquire
    await engine.__aenter__()
    async with engine.thread([5, 6, 7]) as root:
        children = [root.fork([10], program=thinks(0))]
        await children[0]

        async def leave_first(session: Session, nowait: bool) -> None:
            await acquire(session, nowait)
            await engine.__aexit__(None, None, None)

        monkeypatch.setattr(Session, "acquire", leave_first)
        with anyio.fail_after(30), pytest.raises(EngineClosed):
            await root.join(children, merge=True)


async def test_what_is_merged_is_not_computed_again() -> None:
    async with opened() as engine, engine.thread(range(20, 45)) as root:
        await root.generate(1)
        children = [root.fork([10 + i], program=thinks(12)) for i in range(4)]
        for child in children:
            await child
        before = engine.statistics
        await root.join(children, merge=True)
        root.append([50])
        await root.generate(1)
        # The last token of each child, which nobody had needed, and what was appended.
        assert engine.statistics.computed - before.computed == 5
        assert engine.statistics.recomputed == 0


async def test_a_child_leaves_its_seed_and_what_it_returns_is_not_appended() -> None:
    async def returns(thread: ReasoningThread) -> list[int]:
        return [99]

    async with opened() as engine, engine.thread([5, 6]) as root:
        await root.join([root.fork([7, 8], program=returns), root.fork([9], program=returns)], merge=True)
        assert root.tokens == (5, 6, 7, 8, 9)
        with pytest.raises(ThreadStateError, match="nothing to go on from"):
            await root.generate(1)
        root.append([10])
        assert len((await root.generate(1)).tokens) == 1


async def test_what_cannot_be_merged_is_refused_and_may_be_joined_otherwise() -> None:
    async with opened() as engine, engine.thread([5, 6]) as root:
        spawned = root.spawn([7], program=thinks(1))
        with pytest.raises(ThreadStateError, match="spawned"):
            await root.join([spawned], merge=True)
        forked = root.fork([8], program=thinks(1))
        root.append([11])
        with pytest.raises(ThreadStateError, match="has changed since"):
            await root.join([forked], merge=True)
        with pytest.raises(ValueError, match="append=False"):
            await root.join([forked], merge=True, append=False)
        assert len(await root.join()) == 2
        assert root.tokens == (5, 6, 11)
    assert engine.statistics.open_threads == 0


async def test_children_of_other_depths_have_not_computed_the_same_context() -> None:
    policy = Policy(depth=Fixed(2))
    async with (
        Engine.open("countdown", policy=policy, most_iterations=4) as engine,
        engine.thread("22 26 31 53 -> 27") as root,
    ):
        children = [root.fork([5], program=thinks(2), depth=Fixed(depth)) for depth in (2, 4)]
        with pytest.raises(ThreadStateError, match="different depths"):
            await root.join(children, merge=True)
