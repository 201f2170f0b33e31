"""Tools in traces: played back without being called, verified, and what differs is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio.lowlevel
import anyio.to_thread
import pytest

from policies import Fixed, Policy
from runtime import Engine, ReasoningThread, ToolError, TraceError, open_playback
from runtime.link import AnyEvent, ToolCalled
from traces import Playback, Trace, imbalances, read, thread_tree, totals_of, walk_threads
from traces.__main__ import main as traces_command

pytestmark = pytest.mark.anyio

PROMPT = "22 26 31 53 -> 27"
Said = list[tuple[Any, ...]]


class Counted:
    """Tools that count how often they are called."""

    def __init__(self, engine: Engine) -> None:
        self.calls = 0
        for function in (self.add, self.never):
            engine.tools.add(function)
        engine.tools.add(self.fail, errors="raise")

    async def add(self, one: int, other: int) -> int:
        """The sum."""
        self.calls += 1
        await anyio.lowlevel.checkpoint()
        return one + other

    async def fail(self) -> str:
        self.calls += 1
        raise RuntimeError("no luck")

    async def never(self) -> str:
        self.calls += 1
        await anyio.sleep_forever()
        raise AssertionError


async def sums(thread: ReasoningThread) -> str:
    await thread.join([thread.call("add", one=2, other=3)])
    return (await thread.generate(max_tokens=3)).text


async def program(engine: Engine) -> Said:
    """Calls tools in most ways, and says what it saw."""
    said: Said = []
    async with engine.thread(PROMPT) as root:
        calls = [root.call("add", one=40, other=2), root.call("add", one=1, other=1)]
        child = root.spawn("53 - 31 22 Q 27 26 22 22", program=sums)
        said.append((await root.generate(max_tokens=4)).tokens)
        said += [(answer.text, answer.tokens) for answer in await root.join([*calls, child])]
        said.append((await root.generate(max_tokens=4)).tokens)
        first = await root.first([root.call("never"), root.call("add", one=5, other=5)])
        said.append((first.text if first else None,))
        with pytest.raises(ToolError, match="fail: RuntimeError: no luck"):
            await root.join([root.call("fail")])
        said += [(await root.generate(max_tokens=2)).tokens, root.tokens, (root.usage.tool_calls,)]
    return said


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    path = tmp_path_factory.mktemp("traces") / "tools.trace"

    async def record() -> Said:
        async with Engine.open("countdown", policy=Policy(depth=Fixed(2)), trace=path) as engine:
            counted = Counted(engine)
            said = await program(engine)
            assert counted.calls == 6
            return said

    return path, anyio.run(record)


async def test_a_program_is_played_back_without_its_tools(recording: tuple[Path, Said]) -> None:
    path, said = recording
    async with Engine.playback(read(path)) as engine:
        counted = Counted(engine)
        assert await program(engine) == said
        assert counted.calls == 0
    async with Engine.playback(read(path)) as engine:
        assert await program(engine) == said, "nobody need add them"


async def test_what_was_recorded_verifies_and_adds_up(recording: tuple[Path, Said]) -> None:
    path, _ = recording
    trace = read(path)
    assert imbalances(trace.events) == []
    assert totals_of(trace.events).threads == 2
    assert await anyio.to_thread.run_sync(traces_command, ["replay", "--verify", str(path)]) == 0
    called = {record.path: record for record in walk_threads(thread_tree(trace.events)) if record.tool is not None}
    assert [(record.tool.name, record.outcome, record.text) for record in called.values() if record.tool] == [
        ("add", "returned", "42"),
        ("add", "returned", "2"),
        ("add", "returned", "5"),
        ("never", "cancelled", ""),
        ("add", "returned", "10"),
        ("fail", "failed", ""),
    ]
    assert list(called) == [(0, 0), (0, 1), (0, 2, 0), (0, 3), (0, 4), (0, 5)]
    assert called[0, 5].error == "ToolError: fail: RuntimeError: no luck"


async def test_another_call_is_told(recording: tuple[Path, Said]) -> None:
    path, _ = recording
    async with Engine.playback(read(path)) as engine:
        async with engine.thread(PROMPT) as root:
            with pytest.raises(TraceError, match=r"Thread 0.0 differs from the recording: arguments is '\{\"one\":41"):
                await root.call("add", one=41, other=2)
            with pytest.raises(TraceError, match=r"Thread 0.1 differs.*: name of the tool is 'fail', and was 'add'"):
                await root.call("fail")
            with pytest.raises(TraceError, match=r"calls the tool add, and the recording has a thread there"):
                await root.call("add", one=41, other=2)
        async with engine.thread(PROMPT) as root:
            with pytest.raises(TraceError, match="not among the"):
                await root.call("add", one=1, other=2)


async def test_a_trace_that_ends_while_a_tool_works_says_so(recording: tuple[Path, Said]) -> None:
    path, _ = recording
    trace = read(path)

    cut = _cut(trace, lambda event: isinstance(event, ToolCalled), 2)
    async with Engine.playback(cut) as engine, engine.thread(PROMPT) as root:
        calls = [root.call("add", one=40, other=2), root.call("add", one=1, other=1)]
        with pytest.raises(TraceError, match="ends while the tool is running"):
            await calls[0]
        with pytest.raises(TraceError, match="ends while the tool is running"):
            await calls[1]


def _cut(trace: Trace, at: Callable[[AnyEvent], bool], count: int) -> Trace:
    """The beginning of a trace, up to the so many-th event of a kind."""
    places = [index for index, event in enumerate(trace.events) if at(event)]
    return Trace(header=trace.header, events=trace.events[: places[count - 1] + 1], lost="the end")


async def test_a_tool_that_was_cancelled_then_and_is_not_now_is_not_waited_for_without_end(
    recording: tuple[Path, Said],
) -> None:
    trace = read(recording[0])
    opened = replace(open_playback(trace, None), device=Playback(trace, patience=0.05))
    async with Engine.from_device(opened) as engine, engine.thread(PROMPT) as root:
        for one, other in ((40, 2), (1, 1)):
            root.call("add", one=one, other=other)
        root.spawn("53 - 31 22 Q 27 26 22 22", program=sums)
        with pytest.raises(TraceError, match="was cancelled while it ran"):
            await root.call("never")


async def test_results_come_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    async def wait(steps: int) -> int:
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        return steps

    async def program(engine: Engine) -> list[str]:
        root = engine.thread(PROMPT)
        async with root:
            calls = [root.call("wait", steps=steps) for steps in (9, 3, 4, 0, 5, 3)]
            told = [answer.text async for answer in root.as_completed(calls)]
            root.append(" ".join(told))
            await root.generate(2)
        return told

    async with Engine.open("countdown", trace=tmp_path / "run.trace") as engine:
        engine.tools.add(wait)
        told = await program(engine)
    assert told != ["9", "3", "4", "0", "5", "3"]
    async with Engine.playback(read(tmp_path / "run.trace")) as engine:
        assert await program(engine) == told
