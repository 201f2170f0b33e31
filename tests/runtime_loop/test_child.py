"""The handle of a child: its status, awaiting it, cancelling it."""

from __future__ import annotations

import anyio
import pytest

from runtime import ChildStatus, Engine, ReasoningThread
from tests.runtime_loop.scripted import ScriptedDevice
from tests.runtime_loop.scripted_core import assert_all_closed

from .programs import fails, says
from .turns import turn

pytestmark = pytest.mark.anyio


async def test_the_status_says_how_far_it_has_come(device: ScriptedDevice, engine: Engine) -> None:
    may_go = anyio.Event()

    async def linger(thread: ReasoningThread) -> str:
        thread.spawn("b", max_tokens=10**9)
        with anyio.CancelScope(shield=True):
            await may_go.wait()
        await turn(1)
        return "never"

    async with engine, engine.thread("a") as root:
        ends, fails_, lingers = (
            root.spawn("b", program=says("x")),
            root.spawn("b", program=fails(KeyError("one"))),
            root.spawn("b", program=linger),
        )
        assert [child.status for child in (ends, fails_, lingers)] == [ChildStatus.RUNNING] * 3
        assert (ends.answer, fails_.error) == (None, None)
        await ends
        lingers.cancel()
        assert lingers.status is ChildStatus.CANCELLING
        with pytest.raises(KeyError):
            await fails_
        may_go.set()
        answer = await lingers
        assert (answer.reason, answer.message) == ("cancelled", ())
        assert [child.status for child in (ends, fails_, lingers)] == [
            ChildStatus.FINISHED,
            ChildStatus.FAILED,
            ChildStatus.CANCELLED,
        ]
        ends.cancel()
        assert ends.status is ChildStatus.FINISHED
        assert repr(ends) == "<Child (0, 0) finished>"
    assert_all_closed(device.core)


async def test_awaiting_takes_nothing_and_appends_nothing(device: ScriptedDevice, engine: Engine) -> None:
    gate = anyio.Event()
    got = []

    async def wait(thread: ReasoningThread) -> None:
        got.append((await child).text)

    async with engine, engine.thread("a") as root:
        child = root.spawn("b", program=says("x", after=gate))
        siblings = [root.spawn("b", program=wait) for _ in range(2)]
        with anyio.CancelScope() as scope:
            scope.cancel()
            await child
        assert child.status is ChildStatus.RUNNING
        await turn()
        gate.set()
        assert (await child).text == "x"
        assert await child is child.answer
        assert (root.text, child.is_joined) == ("a", False)
        await root.join([child, *siblings])
        assert (root.text, child.is_joined) == ("a x", True)
        assert (await child).text == "x"
        assert got == ["x", "x"]
    assert_all_closed(device.core)


async def test_an_error_that_was_awaited_leaves_the_thread_no_more(device: ScriptedDevice, engine: Engine) -> None:
    async with engine:
        async with engine.thread("a") as root:
            child = root.spawn("b", program=fails(KeyError("one")))
            for _ in range(2):
                with pytest.raises(KeyError, match="one"):
                    await child
            assert isinstance(child.error, KeyError)
        with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
            async with engine.thread("a") as root:
                children = [root.spawn("b", program=fails(error)) for error in (KeyError("one"), OSError("two"))]
                with pytest.raises(KeyError, match="one"):
                    await children[0]
                await turn()
        assert [type(error) for error in caught.value.exceptions] == [OSError]
    assert_all_closed(device.core)


async def test_a_child_that_is_left_is_cancelled_for_those_who_await_it(device: ScriptedDevice, engine: Engine) -> None:
    """Also for those outside its tree, who wait on."""
    reasons = []

    async with engine, anyio.create_task_group() as group:
        async with engine.thread("a") as root:
            child = root.spawn("b", max_tokens=10**9)

            async def wait() -> None:
                reasons.append((await child).reason)

            group.start_soon(wait)
            await turn()
        assert child.status is ChildStatus.CANCELLED
        await turn()
        assert reasons == ["cancelled"]
    assert_all_closed(device.core)
