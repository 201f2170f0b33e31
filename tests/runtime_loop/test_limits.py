"""Limits: inherited, shared by a subtree, and what happens at them."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from policies import AllChildren, Policy, SelfConsistency, SpawnDecision, SpawnRequest, TreeView
from runtime import Engine, LimitExceeded, Limits, ReasoningThread
from runtime.link.commands import CloseThread, Interrupt, ThreadPath
from runtime.link.events import Spawned, ThreadEnded
from tests.runtime_loop.scripted import ScriptedDevice, SteppedDevice
from tests.runtime_loop.scripted_core import DEPTH, assert_all_closed, counting, scripts
from tests.runtime_loop.words import bound_protocol

from .engines import engine_on
from .turns import turn

pytestmark = pytest.mark.anyio


def engine_over(device: ScriptedDevice | SteppedDevice, **options: Any) -> Engine:
    return engine_on(device, records=True, **options)


async def test_tokens_bound_calls_and_then_refuse_them() -> None:
    device = ScriptedDevice(counting)
    async with engine_over(device, limits=Limits(tokens=5)) as engine, engine.thread("a") as root:
        first = await root.generate(3)
        assert (first.reason, first.limit) == ("length", None)
        second = await root.generate(3)
        assert (second.tokens, second.reason, second.limit) == ((3, 4), "length", "tokens")
        with pytest.raises(LimitExceeded, match=r"no tokens left: its own limit is 5 tokens, and 5 are spent"):
            await root.generate(1)
        assert len(root.tokens) == 6


async def test_iterations_bound_calls_and_then_refuse_them() -> None:
    device = ScriptedDevice(counting)
    async with engine_over(device) as engine, engine.thread("a", limits=Limits(iterations=4 * DEPTH)) as root:
        generation = await root.generate()
        assert (generation.tokens, generation.reason, generation.limit) == ((0, 1, 2, 3), "iterations", "iterations")
        with pytest.raises(LimitExceeded, match="no iterations left"):
            await root.generate(1)


async def test_what_children_spend_counts_for_their_parents() -> None:
    device = ScriptedDevice(counting)
    async with engine_over(device) as engine, engine.thread("a", limits=Limits(tokens=10)) as root:

        async def run(thread: ReasoningThread) -> None:
            inner = thread.spawn("c", max_tokens=4)
            await thread.join([inner])
            assert (await thread.generate(100)).limit == "tokens"

        child = root.spawn("b", program=run, limits=Limits(tokens=7))
        await root.join([child])
        assert child.usage.generated == 7
        assert (await root.generate()).tokens == (0, 1, 2)


async def test_threads_that_run_together_share_a_token_limit() -> None:
    device = SteppedDevice(counting)
    async with engine_over(device) as engine, engine.thread("a", limits=Limits(tokens=20)) as root:
        children = [root.spawn("b", program=lambda thread: _text(thread)) for _ in range(4)]
        await turn()
        device.step(50)
        await root.join(children, append=False)
        # They stop at the tick in which the limit is reached; each may have sampled one token beside the last one.
        assert 20 <= root.usage.generated <= 23
        with pytest.raises(LimitExceeded):
            await root.generate(1)


async def _text(thread: ReasoningThread) -> str:
    generation = await thread.generate(100)
    assert (generation.reason, generation.limit) == ("length", "tokens")
    return generation.text


async def test_threads_that_run_together_share_an_iteration_limit() -> None:
    device = SteppedDevice(counting)
    async with engine_over(device) as engine, engine.thread("a", limits=Limits(iterations=10 * DEPTH)) as root:
        got = []

        async def run(thread: ReasoningThread) -> None:
            got.append(await thread.generate())

        children = [root.spawn("b", program=run) for _ in range(3)]
        await turn()
        for _ in range(12):
            device.step()
            await turn()
        await root.join(children)
        assert {(generation.reason, generation.limit) for generation in got} == {("iterations", "iterations")}
        with pytest.raises(LimitExceeded, match="no iterations left"):
            await root.generate(1)


@pytest.mark.parametrize("iterations", range(DEPTH + 1, 4 * DEPTH))
async def test_what_is_closed_is_not_interrupted_when_a_limit_runs_out(iterations: int) -> None:
    """Two calls of one thread may wait for their reports when it is closed, and the first one's spends the limit."""
    device = SteppedDevice(counting, closes_late=True)

    async def run(thread: ReasoningThread) -> None:
        async for _ in thread.stream(10):
            break
        await thread.generate()

    async with engine_over(device) as engine, engine.thread("a") as root:
        child = root.spawn("b", program=run, limits=Limits(iterations=iterations))
        await turn()
        device.step()
        device.step()
        await turn()
        child.cancel()
        await turn()
        device.step()
        await turn()
        device.step()
    closed: set[ThreadPath] = set()
    for command in device.sent:
        if isinstance(command, CloseThread):
            closed.add(command.thread)
        assert not (isinstance(command, Interrupt) and command.thread in closed)
    assert closed == {(0,), (0, 0)}


async def test_threads_and_tree_depth_refuse_children() -> None:
    device = ScriptedDevice(counting)
    async with engine_over(device) as engine:
        async with engine.thread("a", limits=Limits(threads=2)) as root:
            child = root.spawn("b", max_tokens=1)
            with pytest.raises(LimitExceeded, match="limit is 2 threads"):
                root.spawn("b")
            with pytest.raises(LimitExceeded, match="limit is 2 threads"):
                root.fork("b")
            await root.join([child])
        refused = []

        async def run(thread: ReasoningThread) -> None:
            try:
                await thread.join([thread.spawn("b", program=run)])
            except LimitExceeded as error:
                refused.append((thread.path, str(error)))

        async with engine.thread("a", limits=Limits(tree_depth=2)) as root:
            await root.join([root.spawn("b", program=run)])
        assert [path for path, _ in refused] == [(1, 0, 0)]
        assert "thread (1,)'s limit is a tree depth of 2" in refused[0][1]
    assert_all_closed(device.core)


async def test_seconds_end_a_thread_with_everything_below_it() -> None:
    device = ScriptedDevice(counting)
    async with engine_over(device) as engine:
        with pytest.raises(LimitExceeded, match=r"longer than its limit of 0\.01 s"):  # noqa: PT012
            async with engine.thread("a", limits=Limits(seconds=0.01)) as root:
                root.spawn("b")
                await root.generate()
        with pytest.raises(LimitExceeded, match="longer"):
            await engine.run("a", limits=Limits(seconds=0.01))
        async with engine.thread("a") as root:

            async def run(thread: ReasoningThread) -> None:
                await thread.generate()

            with pytest.raises(LimitExceeded, match="longer"):
                await root.join([root.spawn("b", program=run, limits=Limits(seconds=0.01))])
            # A child that its model drives returns nothing instead.
            (answer,) = await root.join([root.spawn("b", limits=Limits(seconds=0.01))])
            assert (answer.text, answer.reason) == ("", "limit")
        async with engine.thread("a", limits=Limits(seconds=60)) as root:
            assert (await root.generate(2)).tokens == (0, 1)
        assert engine.usage.generated == device.statistics.generated
    assert_all_closed(device.core)


async def test_a_deadline_of_the_user_is_not_a_limit() -> None:
    device = ScriptedDevice(counting)
    async with engine_over(device) as engine:
        with pytest.raises(TimeoutError):  # noqa: PT012
            with anyio.fail_after(0.01):
                async with engine.thread("a", limits=Limits(seconds=60)) as root:
                    await root.generate()
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.01):
                await engine.run("a")
    assert_all_closed(device.core)


async def test_a_model_is_refused_what_limits_forbid() -> None:
    device = ScriptedDevice(
        scripts(
            {
                "1": "<spawn> 2 </spawn> <spawn> 2 </spawn> <join> <return> 9 <end>",
                "2": "<spawn> 3 </spawn> <join> <return> 8 <end>",
                "3": "<return> 7 <end>",
            }
        )
    )
    async with engine_over(device, protocol=bound_protocol()) as engine:
        answer = await engine.run("1", limits=Limits(threads=2))
        assert answer.text == "9"
        assert (answer.usage.spawns_requested, answer.usage.spawns_granted, answer.usage.threads) == (3, 1, 2)
        answer = await engine.run("1", limits=Limits(tree_depth=1))
        assert (answer.usage.spawns_requested, answer.usage.spawns_granted) == (4, 2)
    reasons = {e.reason for e in device.core.events if isinstance(e, Spawned) and e.child is None}
    assert reasons == {
        "its own limit is 2 threads, and all were opened",
        "thread (0,)'s limit is 2 threads, and all were opened",
        "thread (1,)'s limit is a tree depth of 1 below it",
    }


async def test_a_model_that_runs_out_returns_nothing_to_its_parent() -> None:
    device = ScriptedDevice(
        scripts({"1": "<spawn> 2 </spawn> <spawn> 3 </spawn> <join> <return> 9 <end>", "3": "<return> 7 <end>"})
    )
    async with engine_over(device, protocol=bound_protocol()) as engine:

        class Bounded(AllChildren, frozen=True):
            def decide(self, request: SpawnRequest, tree: TreeView) -> SpawnDecision:
                return SpawnDecision(run=True, limits=Limits(tokens=6))

        answer = await engine.run("1", policy=Policy(spawn=Bounded()))
        assert answer.text == "9"
        ended = {e.thread: (e.outcome, e.error) for e in device.core.events if isinstance(e, ThreadEnded)}
        assert ended[0, 1] == ("returned", "")
        assert ended[0, 0][0] == "nothing"
        assert "stopped by a limit on tokens" in ended[0, 0][1]
        with pytest.raises(LimitExceeded, match="stopped by a limit on tokens"):
            await engine.run("2", limits=Limits(tokens=4))
        answer = await engine.run("2", max_tokens=4)
        assert (answer.text, answer.reason, answer.usage.generated) == ("", "length", 4)
    assert_all_closed(device.core)


async def test_samples_share_the_limits_of_their_run() -> None:
    device = ScriptedDevice(scripts({"1": "z " * 9 + "<return> 9 <end>"}))
    async with engine_over(device, protocol=bound_protocol(), policy=Policy(select=SelfConsistency(3))) as engine:
        with pytest.raises(LimitExceeded, match="limit"):
            await engine.run("1", limits=Limits(tokens=15))
        assert engine.usage.generated <= 18
        answer = await engine.run("1", limits=Limits(tokens=100, seconds=60, tree_depth=0))
        assert answer.text == "9"
        assert answer.usage.generated == 36
        assert answer.usage.threads == 3
    assert_all_closed(device.core)


async def test_an_error_within_the_limit_of_seconds_is_raised_as_it_is(engine: Engine) -> None:
    with pytest.raises(KeyError):
        async with engine, engine.thread("a", limits=Limits(seconds=100)):
            raise KeyError("x")
