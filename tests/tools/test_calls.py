"""Tools that programs call: children that are no threads."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from policies import Limits
from runtime import Engine, EngineClosed, LimitExceeded, PromptError, ReasoningThread, ThreadStateError, ToolError
from runtime.link.commands import Extend, OpenThread
from runtime.link.events import Event, Joined, Spawned, ThreadEnded, ToolCalled
from tests.runtime_loop.engines import engine_on
from tests.runtime_loop.programs import says
from tests.runtime_loop.scripted import ScriptedDevice
from tests.runtime_loop.words import ids

pytestmark = pytest.mark.anyio


async def test_a_call_is_a_child_whose_result_is_awaited_or_joined(device: ScriptedDevice, engine: Engine) -> None:
    async with engine, engine.thread("a") as root:
        first, second = root.call("add", one=40, other=2), root.call("add", one=np.int64(6))
        answer = await first
        assert (answer.text, answer.tokens, answer.path, answer.reason) == ("42", ids("42"), (0, 0), "returned")
        assert root.text == "a"
        assert [given.text for given in await root.join([second, first])] == ["7", "42"]
        assert root.text == "a 42 7", "in the order of the calls"
        assert (root.usage.tool_calls, root.usage.threads, first.usage.threads) == (2, 1, 0)
        assert root.children == ()
    assert [command.thread for command in device.sent if isinstance(command, OpenThread)] == [(0,)]
    told = [event for event in device.core.events if isinstance(event, Spawned | ToolCalled | ThreadEnded | Joined)]
    at: dict[str, list[Event]] = {}
    for event in told:
        at.setdefault(type(event).__name__, []).append(event)
    assert [(event.thread, event.name, event.arguments) for event in told if isinstance(event, ToolCalled)] == [
        ((0, 0), "add", '{"one":40,"other":2}'),
        ((0, 1), "add", '{"one":6}'),
    ]
    ended = {event.thread: (event.outcome, event.text) for event in told if isinstance(event, ThreadEnded)}
    assert ended == {(0, 0): ("returned", "42"), (0, 1): ("returned", "7"), (0,): ("nothing", "")}
    assert [event.delivered for event in told if isinstance(event, Joined)] == [((0, 0), (0, 1))]


async def test_results_stand_among_messages_in_spawn_order(engine: Engine) -> None:
    async with engine, engine.thread("a") as root:
        root.spawn("b", program=says("x"))
        root.call("add", one=1)
        root.spawn("b", program=says("y"))
        await root.join()
        assert root.text == "a x 2 y"


async def test_threads_go_on_while_a_tool_works(engine: Engine) -> None:
    called, may_end = anyio.Event(), anyio.Event()

    async def wait(word: str) -> str:
        called.set()
        await may_end.wait()
        return word

    engine.tools.add(wait)
    async with engine, engine.thread("a") as root:
        tool = root.call("wait", word="z")
        await called.wait()
        child = root.spawn("b", program=says("x", tokens=3))
        assert (await child).text == "x"
        assert (await root.generate(2)).tokens == (0, 1)
        assert tool.status.value == "running"
        may_end.set()
        assert (await tool).text == "z"


async def test_the_first_result_cancels_the_others(engine: Engine) -> None:
    async with engine, engine.thread("a") as root:
        calls = [root.call("never"), root.call("add", one=1), root.spawn("b", program=says("x", after=anyio.Event()))]
        answer = await root.first(calls)
        assert answer is not None
        assert answer.text == "2"
        assert [call.status.value for call in calls] == ["cancelled", "finished", "cancelled"]
        assert root.text == "a 2"


async def test_what_a_call_fails_of_is_its_text_or_raised(device: ScriptedDevice, engine: Engine) -> None:
    async with engine, engine.thread("a") as root:
        failed, late = root.call("fail", text="no luck."), root.call("late")
        answers = [await failed, await late]
        assert answers[0].reason == "returned"
        assert answers[0].tokens == (), "this tokenizer cannot write it"
        assert answers[0].text == "Error: fail: RuntimeError: no luck"
        assert answers[1].text == "Error: late took longer than 0 s"
        with pytest.raises(PromptError, match="cannot be tokenized"):
            await root.join([failed])
        raised = root.call("raises", text="no luck.")
        with pytest.raises(ToolError, match=r"^raises: RuntimeError: no luck\.$") as caught:
            await root.join([raised])
        assert isinstance(caught.value.__cause__, RuntimeError)
        assert raised.status.value == "failed"
    ended = {event.thread: event for event in device.core.events if isinstance(event, ThreadEnded)}
    assert (ended[0, 0].outcome, ended[0, 0].text) == ("returned", answers[0].text)
    assert (ended[0, 2].outcome, ended[0, 2].error) == ("failed", "ToolError: raises: RuntimeError: no luck")


async def test_a_failure_that_nobody_joined_leaves_with_the_thread(engine: Engine) -> None:
    async with engine:
        root = engine.thread("a")
        await root.__aenter__()
        call = root.call("raises", text="x")
        while call.status.value == "running":
            await anyio.lowlevel.checkpoint()
        with pytest.raises(ExceptionGroup, match="unjoined children") as caught:
            await root.__aexit__(None, None, None)
    assert [type(error) for error in caught.value.exceptions] == [ToolError]


async def test_leaving_a_thread_cancels_its_tools(device: ScriptedDevice, engine: Engine) -> None:
    async with engine:
        async with engine.thread("a") as root:
            call = root.call("never")
        assert call.status.value == "cancelled"
        with anyio.move_on_after(0):
            async with engine.thread("a") as root:
                call = root.call("never")
                await call
        assert call.status.value == "cancelled"
        with pytest.raises(LimitExceeded, match="longer than its limit"):
            async with engine.thread("a", limits=Limits(seconds=0.01)) as root:
                await root.call("never")
    outcomes = [event.outcome for event in device.core.events if isinstance(event, ThreadEnded)]
    assert outcomes == ["cancelled", "nothing", "cancelled", "cancelled", "cancelled", "nothing"]


async def test_limits_count_the_calls_of_all_below(engine: Engine) -> None:
    async def calls(thread: ReasoningThread) -> str:
        return (await thread.call("add", one=1)).text

    async with engine, engine.thread("a", limits=Limits(tool_calls=2, threads=2)) as root:
        await root.call("add", one=1)
        assert (await root.spawn("b", program=calls)).text == "2"
        with pytest.raises(LimitExceeded, match=r"its own limit is 2 tool calls.*Raise Limits.tool_calls"):
            root.call("add", one=1)
        assert root.usage.tool_calls == 2


async def test_what_does_not_fit_is_refused_before_anything_happens(device: ScriptedDevice, engine: Engine) -> None:
    async with engine, engine.thread("a") as root:
        with pytest.raises(ValueError, match="There is no tool 'sub'; there are add, fail"):
            root.call("sub")
        with pytest.raises(ValueError, match=r"add cannot be called with '\{\"one\":\"x\"\}': Expected `int`"):
            root.call("add", one="x")
        with pytest.raises(ValueError, match="unknown field `third`"):
            root.call("add", one=1, third=1)
        with pytest.raises(ValueError, match="which JSON has not"):
            root.call("add", one=object())
        call = root.call("add", one=1)
        with pytest.raises(ThreadStateError, match="spawned with its message alone"):
            await root.join([call], merge=True)
    with pytest.raises(EngineClosed):
        root.call("add", one=1)
    assert sum(isinstance(event, ToolCalled) for event in device.core.events) == 1


async def test_special_tokens_in_results_are_text(engine: Engine) -> None:
    """Here the tokenizer knows of none, so that a tag is a word like any other; nothing else is appended."""

    async def quote() -> str:
        return "9 x"

    engine.tools.add(quote)
    async with engine, engine.thread("a") as root:
        await root.join([root.call("quote")])
        assert root.text == "a 9 x"


async def test_a_result_that_does_not_fit_leaves_the_context_as_it_is(device: ScriptedDevice) -> None:
    async def long() -> str:
        return "x " * 20

    engine = engine_on(device, max_context=10)
    engine.tools.add(long)
    async with engine, engine.thread("a") as root:
        with pytest.raises(ValueError, match="the model's context holds 10"):
            await root.join([root.call("long")])
        assert root.text == "a"
    assert [command.tokens for command in device.sent if isinstance(command, Extend)] == [ids("a")]
