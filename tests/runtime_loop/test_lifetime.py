"""Trees that are cancelled as a whole: at every depth that can be opened, and as one."""

from __future__ import annotations

import asyncio
from typing import Literal

import anyio
import pytest

from runtime import ChildStatus, LimitExceeded, Limits, ReasoningThread
from runtime.threads.accounts import Account
from tests.runtime_loop.scripted import ScriptedDevice
from tests.runtime_loop.scripted_core import assert_all_closed, counting

from .engines import engine_on
from .turns import turn

pytestmark = pytest.mark.anyio

DEEP = 600
"""More levels than groups inside groups could be cancelled in on asyncio."""


@pytest.mark.parametrize("how", ["child", "outside", "left"])
async def test_deep_trees_are_cancelled(how: Literal["child", "outside", "left"]) -> None:
    device = ScriptedDevice(counting)
    down = anyio.Event()

    async def descend(thread: ReasoningThread) -> None:
        if len(thread.path) <= DEEP:
            await thread.join([thread.spawn("b", program=descend)])
        down.set()
        await anyio.sleep_forever()

    async with engine_on(device) as engine:
        with anyio.CancelScope() as scope:
            async with engine.thread("a") as root:
                child = root.spawn("b", program=descend)
                await down.wait()
                if how == "child":
                    child.cancel()
                    assert [answer.reason for answer in await root.join([child])] == ["cancelled"]
                elif how == "outside":
                    scope.cancel()
                    await anyio.sleep_forever()
        assert child.answer is not None
        assert child.answer.reason == "cancelled"
        assert child.usage.threads == DEEP
        assert scope.cancelled_caught == (how == "outside")
    assert_all_closed(device.core)


async def test_everything_below_a_cancelled_thread_is_cancelled_at_once() -> None:
    """Also where a thread on the way takes its time."""
    device = ScriptedDevice(counting)
    cancelled: list[str] = []
    may_end = anyio.Event()

    async def wait(thread: ReasoningThread) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append("grandchild")

    async def linger(thread: ReasoningThread) -> None:
        thread.spawn("b", program=wait)
        with anyio.CancelScope(shield=True):
            await may_end.wait()
        cancelled.append("child")
        thread.spawn("b", program=wait)

    async with engine_on(device) as engine, engine.thread("a") as root:
        child = root.spawn("b", program=linger)
        await turn()
        child.cancel()
        await turn()
        assert cancelled == ["grandchild"]
        may_end.set()
        await root.join([child])
        assert cancelled == ["grandchild", "child", "grandchild"]
    assert_all_closed(device.core)


async def test_a_deadline_reaches_what_is_below_and_is_only_its_owners() -> None:
    device = ScriptedDevice(counting)
    reasons: list[str] = []

    async def descend(thread: ReasoningThread) -> None:
        below = thread.spawn("b", program=descend if len(thread.path) < 4 else None)
        try:
            with anyio.CancelScope(shield=True):
                await thread.join([below])
        finally:
            reasons.extend([below.answer.reason] if below.answer else [])
        await anyio.sleep_forever()

    async with engine_on(device) as engine, engine.thread("a") as root:
        with pytest.raises(LimitExceeded, match=r"Thread \(0, 0\) ran longer than its limit of 0\.01 s"):
            await root.join([root.spawn("b", program=descend, limits=Limits(seconds=0.01))])
        assert reasons == ["cancelled"] * 3
    assert_all_closed(device.core)


class Ended(BaseException):
    """What no thread may keep, as `KeyboardInterrupt`."""


async def test_what_ends_programs_ends_the_tree() -> None:
    """And comes in one group, however many threads are above the one that it came from."""
    device = ScriptedDevice(counting)

    async def descend(thread: ReasoningThread) -> None:
        if len(thread.path) < 5:
            await thread.join([thread.spawn("b", program=descend)])
            await anyio.sleep_forever()
        raise Ended

    async with engine_on(device) as engine:
        with pytest.raises(BaseExceptionGroup) as caught:
            async with engine.thread("a") as root:
                await root.join([root.spawn("b", program=descend)])
        assert [type(error) for error in caught.value.exceptions] == [Ended]
    assert_all_closed(device.core)


def test_trees_have_a_bound_of_depth_that_can_be_lifted() -> None:
    def refusal_of_last(levels: int, limits: Limits) -> str:
        account = Account((0,), limits, Account(()))
        for level in range(levels):
            account = Account((*account.path, level), parent=account)
        return account.refusal()

    most = Limits().tree_depth
    assert most is not None
    assert most > DEEP
    assert refusal_of_last(most - 1, Limits()) == ""
    assert f"thread (0,)'s limit is a tree depth of {most}" in refusal_of_last(most, Limits(tokens=5))
    assert refusal_of_last(2 * most, Limits(tree_depth=None)) == ""


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("how", ["join", "leave", "await"])
async def test_a_child_that_asyncio_cancels_before_its_first_step_has_ended(
    anyio_backend: str, how: Literal["join", "leave", "await"]
) -> None:
    """Nothing of the child has run then, and nobody waits for it."""
    device = ScriptedDevice(counting)
    began: list[ReasoningThread] = []

    async def run(thread: ReasoningThread) -> None:
        began.append(thread)

    async with engine_on(device) as engine:
        async with engine.thread("a") as root:
            child = root.spawn("b", program=run)
            (task,) = (task for task in asyncio.all_tasks() if task.get_name() == f"reasoning thread {child.path}")
            task.cancel()
            if how == "join":
                assert [answer.reason for answer in await root.join([child])] == ["cancelled"]
            elif how == "await":
                assert (await child).reason == "cancelled"
        assert child.status is ChildStatus.CANCELLED
        assert began == []
    assert_all_closed(device.core)
