"""Cancellation and deadlines, at every await."""

from __future__ import annotations

import random

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import ChildStatus, Engine, Limits, ReasoningThread
from runtime.link.commands import CloseThread, Generate, Interrupt
from runtime.threads.results import Generation
from tests.runtime_loop.scripted import ScriptedDevice, SteppedDevice
from tests.runtime_loop.scripted_core import assert_all_closed, counting, scripts
from tests.runtime_loop.words import bound_protocol, ids

from .engines import engine_on
from .turns import turn

pytestmark = pytest.mark.anyio


async def test_a_cancelled_generate_leaves_the_context_as_it_was() -> None:
    device = SteppedDevice(counting)
    async with engine_on(device) as engine, engine.thread("a b") as root:
        for ticks in range(3):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(root.generate)
                    await turn()
                    device.step(ticks)
                    await turn()
                    scope.cancel()
            assert scope.cancelled_caught
            assert root.tokens == ids("a b")
            assert device.sent[-1] == Interrupt((0,), keep=0)
            # The next call may start before the device has heard of the end of this one.
            async with anyio.create_task_group() as group:
                results: list[Generation] = []

                async def generate(results: list[Generation] = results) -> None:
                    results.append(await root.generate(2))

                group.start_soon(generate)
                await turn()
                device.step(2)
            assert results[0].tokens == (2 * ticks, 2 * ticks + 1)
            root._running.context.cut(2, 0)
            device.take_commands()
            device.core.threads[0,].emitted = 2 * ticks + 2
        await turn()
        assert root.usage.generated == device.statistics.generated == 3 + 6
    assert_all_closed(device.core)


async def test_a_result_that_came_with_the_cancellation_is_rolled_back() -> None:
    device = SteppedDevice(counting)
    async with engine_on(device) as engine, engine.thread("a") as root:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(root.generate, 2)
                await turn()
                device.step(2)
                scope.cancel()
        device.take_commands()
        assert tuple(device.core.threads[0,].tokens) == root.tokens
        assert root.usage.generated == 2


async def test_cancelled_in_the_queue_it_never_started() -> None:
    device = SteppedDevice(counting)
    async with (
        engine_on(device, queue_size=1) as engine,
        engine.thread("a") as first,
        engine.thread("b") as second,
        anyio.create_task_group() as group,
    ):
        group.start_soon(first.generate, 1)
        await turn()
        with anyio.move_on_after(0):
            await second.generate(1)
        assert [c.thread for c in device.sent if isinstance(c, Generate)] == [(0,)]
        group.start_soon(second.generate, 1)
        device.step()
        await turn()
        device.step()
        await turn()
        assert second.tokens == (*ids("b"), 0)


async def test_deadlines_just_work() -> None:
    device = ScriptedDevice(counting)
    async with engine_on(device) as engine, engine.thread("a") as root:
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.005):
                await root.generate()
        assert root.tokens == ids("a")
        with anyio.move_on_after(0.005) as scope:
            children = [root.spawn("b") for _ in range(3)]
            await root.join(children)
        assert scope.cancelled_caught
        assert root.tokens == ids("a")
        for child in children:
            child.cancel()
        assert {answer.reason for answer in await root.join(children)} == {"cancelled"}
        assert (await root.generate(2)).tokens == (0, 1)
        assert engine.usage.generated == device.statistics.generated
    assert_all_closed(device.core)


async def test_cleaning_up_in_a_cancelled_child_is_waited_for() -> None:
    device = ScriptedDevice(counting)
    cleaned = []

    async def run(thread: ReasoningThread) -> None:
        try:
            await thread.generate()
        finally:
            with anyio.CancelScope(shield=True):
                cleaned.append((await thread.generate(2)).tokens)

    async with engine_on(device) as engine:
        async with engine.thread("a") as root:
            child = root.spawn("b", program=run)
            await root.generate(3)
        assert len(cleaned) == 1
        assert child.status is ChildStatus.CANCELLED
    assert_all_closed(device.core)


TREE = {
    "1": "a <spawn> 2 </spawn> b <spawn> 3 </spawn> <join> c <spawn> 2 </spawn> <join> <return> 9 9 <end>",
    "2": "x <return> 7 <end>",
    "3": "<spawn> 2 </spawn> <join> <return> 8 <end>",
}


async def everything(engine: Engine) -> None:
    """A program that waits in every way there is."""

    async def run(thread: ReasoningThread) -> str:
        generation = await thread.generate(2)
        await thread.join([thread.spawn("2")])
        return generation.text

    async with engine.thread("4") as root, anyio.create_task_group() as group:
        group.start_soon(engine.run, "1")
        async for _ in root.stream(2):
            pass
        children = [root.spawn("5", program=run), root.fork(program=run), root.spawn("3")]
        await root.join(children[:1])
        async for _ in root.as_completed(children[1:2]):
            break
        await root.first(children[2:])
        root.spawn("6")
        await root.generate(2)


@pytest.mark.parametrize("step_first", [False, True])
async def test_cancellation_at_every_await(step_first: bool) -> None:
    """Cancels after the n-th pass of the event loop, for every n until the program is through."""
    finished = False
    cancel_at = 0
    while not finished:
        device = SteppedDevice(scripts(TREE), closes_late=True)
        done = anyio.Event()
        async with anyio.create_task_group() as outer:

            async def tick(device: SteppedDevice = device) -> None:
                while not device.is_stopped:
                    device.step()
                    await anyio.lowlevel.checkpoint()

            async with engine_on(device, protocol=bound_protocol(), queue_size=2) as engine:
                scope = anyio.CancelScope()

                async def work(
                    engine: Engine = engine, scope: anyio.CancelScope = scope, done: anyio.Event = done
                ) -> None:
                    with scope:
                        await everything(engine)
                    done.set()

                outer.start_soon(work)
                for turns in range(cancel_at):
                    if done.is_set():
                        break
                    if step_first or turns % 3 == 2:
                        device.step()
                    await anyio.lowlevel.checkpoint()
                finished = done.is_set()
                scope.cancel()
                outer.start_soon(tick)
                await done.wait()
                assert engine._session is not None
                await engine._session.account.settled()
                assert engine.usage.generated == device.statistics.generated
                assert engine.usage.iterations == device.statistics.iterations
                device.take_commands()
                assert engine._session.inbox.failure is None
                assert device.core.threads == {}
        assert_all_closed(device.core)
        cancel_at += 1
    assert cancel_at > 40


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_programs_end_and_leave_nothing(seed: int) -> None:
    """Random trees of spawns, forks, joins, generates, streams, cancellations, deadlines and errors."""
    choose = random.Random(seed)

    async def run(thread: ReasoningThread) -> str | None:
        for _ in range(choose.randint(1, 5)):
            match choose.randint(0, 9):
                case 0 | 1:
                    await thread.generate(choose.randint(1, 6))
                case 2 | 3 if len(thread.path) < 4:
                    limits = choose.choice([None, Limits(tokens=5), Limits(iterations=20)])
                    thread.spawn("5", program=choose.choice([run, None]), max_tokens=20, limits=limits)
                case 4 if len(thread.path) < 4:
                    thread.fork("6", program=run)
                case 5 if choose.random() < 0.5:
                    await thread.join()
                case 5:
                    await thread.first()
                case 6:
                    with anyio.move_on_after(choose.choice([0, 0.0005])):
                        await thread.generate()
                case 7:
                    async for chunk in thread.stream(5):
                        if chunk.tokens[-1] % 3 == 2:
                            break
                case 8:
                    for child in thread.children:
                        child.cancel()
                case _:
                    if choose.random() < 0.2:
                        raise KeyError("a program's own")
        return choose.choice([None, "x"])

    async def main() -> None:
        device = ScriptedDevice(counting)
        async with engine_on(device, queue_size=3) as engine:
            for _ in range(3):
                with anyio.move_on_after(choose.choice([0.001, 5])):
                    try:
                        async with engine.thread("4") as root:
                            await run(root)
                    except (Exception, ExceptionGroup):
                        pass
            assert engine._session is not None
            await engine._session.account.settled()
            assert engine._session.inbox.failure is None
            for name in ("generated", "computed", "iterations", "cached_tokens"):
                assert getattr(engine.usage, name) == getattr(device.statistics, name)
        assert_all_closed(device.core)

    anyio.run(main, backend="asyncio" if seed % 2 else "trio")


async def test_closing_follows_opening_even_for_children_that_never_ran() -> None:
    device = ScriptedDevice(counting)
    async with engine_on(device) as engine:
        with anyio.CancelScope() as scope:
            async with engine.thread("a") as root:
                children = [root.spawn("b"), root.fork("c")]
                scope.cancel()
        assert [child.answer.reason for child in children if child.answer] == ["cancelled", "cancelled"]
    closed = [command.thread for command in device.sent if isinstance(command, CloseThread)]
    assert closed[-1] == (0,)
    assert_all_closed(device.core)
