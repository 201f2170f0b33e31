"""Spawning and joining by a program."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from runtime import Child, ChildStatus, Engine, ReasoningThread, ThreadStateError
from runtime.link.commands import Extend, OpenThread
from runtime.link.events import Joined, Spawned
from tests.runtime_loop.scripted import ScriptedDevice, SteppedDevice
from tests.runtime_loop.scripted_core import assert_all_closed, counting, scripts
from tests.runtime_loop.words import bound_protocol, ids

from .engines import engine_on
from .programs import fails, says
from .turns import turn

pytestmark = pytest.mark.anyio


async def test_all_are_appended_in_spawn_order(device: ScriptedDevice, engine: Engine) -> None:
    late = anyio.Event()
    async with engine, engine.thread("a") as root:
        first = root.spawn("b", program=says("x x", after=late))
        silent = root.spawn("c", program=says(None))
        second = root.spawn("d", program=says("y"))
        async with anyio.create_task_group() as group:

            async def release() -> None:
                await second
                late.set()

            group.start_soon(release)
            answers = await root.join([second, first, silent])
        assert [answer.text for answer in answers] == ["y", "x x", ""]
        assert [answer.reason for answer in answers] == ["returned", "returned", "nothing"]
        assert [answer.path for answer in answers] == [(0, 2), (0, 0), (0, 1)]
        assert root.text == "a x x y"
        assert root.usage.threads == 4
        assert root.own_usage.generated == 0
        assert root.usage.generated == 3
        assert await root.join() == []
    extended = [c.tokens for c in device.core.commands if isinstance(c, Extend) and c.thread == (0,)]
    assert extended == [ids("a"), ids("x x y")]
    joined = [event for event in device.core.events if isinstance(event, Joined)]
    assert joined[0].delivered == ((0, 0), (0, 2))
    assert_all_closed(device.core)


async def test_messages_are_put_as_the_protocol_says(device: ScriptedDevice) -> None:
    engine = engine_on(device, protocol=bound_protocol(most_messages=1))
    async with engine, engine.thread("a") as root:
        children = [
            root.spawn("b", program=says(None)),
            root.spawn("b", program=says("x")),
            root.spawn("b", program=says("y")),
        ]
        await root.join(children)
        assert root.text == "a <message> x </message>"
        await root.join([root.spawn("b", program=says("y"))], append=False)
        assert root.text == "a <message> x </message>"


async def test_errors_wait_for_their_joiner(device: ScriptedDevice, engine: Engine) -> None:
    async with engine, engine.thread("a") as root:
        bad, good = root.spawn("b", program=fails(KeyError("one"))), root.spawn("b", program=says("x"))
        assert (await root.generate(5)).tokens == (0, 1, 2, 3, 4)
        with pytest.raises(KeyError, match="one"):
            await root.join([good, bad])
        assert root.text == "a 0 1 2 3 4"
        several = [root.spawn("b", program=fails(KeyError("one"))) for _ in range(3)]
        with pytest.raises(ExceptionGroup, match="3 children of thread") as caught:
            await root.join(several)
        assert len(caught.value.exceptions) == 3
    assert_all_closed(device.core)


async def test_errors_nobody_joined_leave_with_the_thread(device: ScriptedDevice, engine: Engine) -> None:
    async with engine:
        with pytest.raises(ExceptionGroup, match="unjoined children") as caught:  # noqa: PT012
            async with engine.thread("a") as root:
                children = [root.spawn("b", program=fails(KeyError("one"))), root.spawn("c", max_tokens=10**9)]
                while children[0].status is ChildStatus.RUNNING:
                    await anyio.lowlevel.checkpoint()
        assert [repr(error) for error in caught.value.exceptions] == ["KeyError('one')"]
        with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
            async with engine.thread("a") as root:
                child = root.spawn("b", program=fails(KeyError("one")))
                while child.status is ChildStatus.RUNNING:
                    await anyio.lowlevel.checkpoint()
                raise OSError("mine")
        assert [type(error) for error in caught.value.exceptions] == [OSError, KeyError]
    assert_all_closed(device.core)


async def test_a_child_is_joined_once_by_its_parent(engine: Engine) -> None:
    async with engine, engine.thread("a") as root, engine.thread("a") as other:
        child = root.spawn("b", program=says("x"))
        with pytest.raises(ValueError, match="not a child of thread"):
            await other.join([child])
        with pytest.raises(ValueError, match="twice"):
            await root.join([child, child])
        await root.join([child])
        with pytest.raises(ThreadStateError, match="joined already"):
            await root.join([child])
        never = anyio.Event()
        child = root.spawn("b", program=says("x", after=never))
        async with anyio.create_task_group() as group:
            group.start_soon(root.join, [child])
            await turn()
            with pytest.raises(ThreadStateError, match="another coroutine"):
                await root.join([child])
            never.set()


async def test_a_cancelled_join_may_be_repeated(engine: Engine) -> None:
    never = anyio.Event()
    async with engine, engine.thread("a") as root:
        child = root.spawn("b", program=says("x", after=never))
        with anyio.move_on_after(0):
            await root.join([child])
        with anyio.CancelScope() as scope:
            scope.cancel()
            await root.first([child])
        assert root.text == "a"
        assert child.status is ChildStatus.RUNNING
        never.set()
        await root.join([child])
        assert root.text == "a x"


async def test_as_completed_gives_answers_as_they_come(engine: Engine) -> None:
    gates = [anyio.Event() for _ in range(3)]
    async with engine, engine.thread("a") as root:
        children = [root.spawn("b", program=says(word, after=gate)) for word, gate in zip("xyz", gates, strict=True)]
        order = [2, 0, 1]
        gates[order[0]].set()
        seen = []
        async for answer in root.as_completed(children):
            seen.append(answer.text)
            if len(seen) < 3:
                gates[order[len(seen)]].set()
        assert seen == ["z", "x", "y"]
        assert root.text == "a"
        bad, good = root.spawn("b", program=fails(KeyError("one"))), root.spawn("b", program=says("x"))
        completed = root.as_completed()
        got = []
        for _ in range(2):
            try:
                got.append((await anext(completed)).text)
            except KeyError:
                got.append("error")
        assert sorted(got) == ["error", "x"]
        with pytest.raises(StopAsyncIteration):
            await anext(completed)
        assert bad.is_joined
        assert good.is_joined


async def test_as_completed_ends_where_its_children_are_joined_otherwise(engine: Engine) -> None:
    async with engine, engine.thread("a") as root:
        children = [root.spawn("b", program=says(word)) for word in "xyz"]
        completed = root.as_completed(children)
        first = await anext(completed)
        left = [child for child in children if not child.is_joined]
        assert len(left) == 2
        assert {answer.text for answer in await root.join(left)} | {first.text} == {"x", "y", "z"}
        with pytest.raises(ThreadStateError, match="given to another join"):
            await anext(completed)
        again = [root.spawn("b", program=says(word)) for word in "xy"]
        with anyio.CancelScope() as scope:
            scope.cancel()
            await root.join(again)
        assert {answer.text async for answer in root.as_completed(again)} == {"x", "y"}


async def test_fork_inherits_the_context(device: ScriptedDevice, engine: Engine) -> None:
    async with engine, engine.thread("a b") as root:
        await root.generate(2)

        async def run(thread: ReasoningThread) -> str:
            assert thread.text == "a b 0 1 c"
            return (await thread.generate(2)).text

        child = root.fork("c", program=run)
        root.append("d")
        bare = root.fork(max_tokens=3)
        answers = await root.join([child, bare])
        assert answers[0].text == " 0 1"
        assert answers[1].reason == "length"
        assert child.usage.cached_tokens > 0
    opened = {c.thread: c.inherits for c in device.core.commands if isinstance(c, OpenThread)}
    assert opened == {(0,): None, (0, 0): (0,), (0, 1): (0,)}
    forks = [e.fork for e in device.core.events if isinstance(e, Spawned)]
    assert forks == [True, True]
    assert_all_closed(device.core)


async def test_children_have_children(device: ScriptedDevice, engine: Engine) -> None:
    async def run(thread: ReasoningThread) -> str:
        if len(thread.path) > 4:
            return "x"
        answers = await thread.join([thread.spawn("b", program=run), thread.spawn("c", program=run)])
        return " ".join(answer.text for answer in answers)

    async with engine, engine.thread("a") as root:
        (answer,) = await root.join([root.spawn("b", program=run)])
        assert answer.text.split() == ["x"] * 8
        assert answer.usage.threads == 15
    assert_all_closed(device.core)


async def test_a_child_can_be_cancelled(device: ScriptedDevice, engine: Engine) -> None:
    async with engine, engine.thread("a") as root:
        early, late = root.spawn("b", max_tokens=10**9), root.spawn("b", max_tokens=10**9)
        early.cancel()
        await root.generate(2)
        late.cancel()
        answers = await root.join([early, late])
        assert [answer.reason for answer in answers] == ["cancelled", "cancelled"]
        assert root.text == "a 0 1"
        assert "cancelled" in repr(late)
    assert_all_closed(device.core)


async def test_a_model_driven_child_says_its_text_without_a_protocol() -> None:
    device = ScriptedDevice(scripts({"b": "x y 9", "c": "x"}))
    engine = engine_on(device, stop_tokens=[9])
    async with engine, engine.thread("a") as root:
        children = [root.spawn("b"), root.spawn("c", max_tokens=2)]
        answers = await root.join(children)
        assert [(answer.text, answer.reason) for answer in answers] == [("x y", "stop"), ("", "length")]
        assert root.text == "a x y"


async def test_a_join_that_appends_needs_an_idle_thread() -> None:
    device = SteppedDevice(counting)
    engine = engine_on(device)
    async with engine, engine.thread("a") as root, anyio.create_task_group() as group:
        child: Child = root.spawn("b", max_tokens=1)
        group.start_soon(root.generate, 1)
        await turn()
        with pytest.raises(ThreadStateError, match="cannot join while"):
            await root.join([child])
        device.step()
        assert [answer.reason for answer in await root.join([child], append=False)] == ["length"]
