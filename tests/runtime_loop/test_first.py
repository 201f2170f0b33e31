"""The first answer that is accepted, and what becomes of the other children."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from runtime import Answer, Engine, ReasoningThread
from runtime.link.commands import CloseThread
from runtime.link.events import Joined, ThreadEnded
from tests.runtime_loop.scripted import ScriptedDevice
from tests.runtime_loop.scripted_core import assert_all_closed

from .programs import fails, says
from .turns import turn

pytestmark = pytest.mark.anyio


async def test_the_others_are_cancelled(device: ScriptedDevice, engine: Engine) -> None:
    async with engine, engine.thread("a") as root:
        never = anyio.Event()
        children = [
            root.spawn("b", program=says("x", after=never)),
            root.spawn("b", program=fails(KeyError("no success"))),
            root.spawn("b", program=says(None)),
            root.spawn("c", program=says("y", tokens=4)),
            root.spawn("b", max_tokens=10**9),
        ]
        answer = await root.first(children)
        assert isinstance(answer, Answer)
        assert (answer.text, answer.path) == ("y", (0, 3))
        assert root.text == "a y"
        assert [child.status.name for child in children] == ["CANCELLED", "FAILED", "FINISHED", "FINISHED", "CANCELLED"]
        assert children[0].answer is not None
        assert children[0].answer.reason == "cancelled"
        # What was cancelled is closed before the join returns, and its work is counted.
        assert {c.thread for c in device.sent if isinstance(c, CloseThread)} == {(0, k) for k in range(5)}
        assert root.usage.generated == device.statistics.generated
    joined = [event for event in device.core.events if isinstance(event, Joined)]
    assert joined == [
        Joined(
            time=0.0,
            thread=(0,),
            children=tuple((0, k) for k in range(5)),
            delivered=((0, 3),),
            cancelled=((0, 0), (0, 4)),
        )
    ]
    ended = {e.thread: e.outcome for e in device.core.events if isinstance(e, ThreadEnded)}
    assert ended == {
        (0, 0): "cancelled",
        (0, 1): "failed",
        (0, 2): "nothing",
        (0, 3): "returned",
        (0, 4): "cancelled",
        (0,): "nothing",
    }
    assert_all_closed(device.core)


async def test_what_is_accepted_may_be_told(engine: Engine) -> None:
    async with engine, engine.thread("a") as root:
        children = [root.spawn("b", program=says(word)) for word in ("x", "y", "z")]
        answer = await root.first(children, accept=lambda a: a.text == "y", append=False)
        assert answer is not None
        assert answer.text == "y"
        assert root.text == "a"


async def test_none_or_the_errors_where_nothing_is_accepted(engine: Engine) -> None:
    async with engine, engine.thread("a") as root:
        assert await root.first([root.spawn("b", program=says(None))]) is None
        assert await root.first([]) is None
        children = [root.spawn("b", program=says(None)), root.spawn("b", program=fails(KeyError("one")))]
        with pytest.raises(KeyError, match="one"):
            await root.first(children)
        children = [root.spawn("b", program=fails(KeyError("one"))), root.spawn("b", program=fails(OSError("two")))]
        with pytest.raises(ExceptionGroup) as caught:
            await root.first(children)
        assert [type(error) for error in caught.value.exceptions] == [KeyError, OSError]
        assert root.text == "a"


async def test_answers_are_offered_in_the_order_of_their_ends(engine: Engine) -> None:
    """Those that are there already come first, as they are given."""
    gates = [anyio.Event() for _ in range(4)]
    offered: list[str] = []

    def accept(answer: Answer) -> bool:
        offered.append(answer.text)
        if answer.text == "v":
            gates[2].set()
        return False

    async with engine, engine.thread("a") as root:
        children = [root.spawn("b", program=says(word, after=gate)) for word, gate in zip("stuv", gates, strict=True)]
        gates[1].set()
        gates[0].set()
        await children[0]
        await children[1]
        gates[3].set()
        children.append(root.spawn("b", program=fails(KeyError("one"))))
        with pytest.raises(KeyError, match="one"):
            await root.first([children[2], children[1], *children[3:], children[0]], accept=accept)
        assert offered == ["t", "s", "v", "u"]
        assert all(child.is_joined for child in children)


async def test_what_accept_raises_joins_nothing(engine: Engine) -> None:
    def accept(answer: Answer) -> bool:
        raise OSError(answer.text)

    async with engine, engine.thread("a") as root:
        children = [root.spawn("b", program=says("x")), root.spawn("b", program=says("x"))]
        with pytest.raises(OSError, match="x"):
            await root.first(children, accept=accept)
        assert [answer.text for answer in await root.join(children)] == ["x", "x"]


async def test_cancelled_while_the_others_go_it_has_joined_nothing(engine: Engine) -> None:
    may_go = anyio.Event()

    async def linger(thread: ReasoningThread) -> None:
        with anyio.CancelScope(shield=True):
            await may_go.wait()
        await anyio.lowlevel.checkpoint()

    async with engine, engine.thread("a") as root:
        children = [root.spawn("b", program=says("x")), root.spawn("b", program=linger)]
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(root.first, children)
                await children[0]
                await turn()
                scope.cancel()
        assert root.text == "a"
        assert not any(child.is_joined for child in children)
        may_go.set()
        answers = await root.join(children)
        assert [answer.reason for answer in answers] == ["returned", "cancelled"]
        assert root.text == "a x"
