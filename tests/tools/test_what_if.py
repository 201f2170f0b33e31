"""What if, where models call tools: equal calls give what they gave, and others are run or refused."""

from __future__ import annotations

from pathlib import Path

import anyio.to_thread
import msgspec
import pytest

from runtime import Engine, Tools
from tests.chat.templates import user
from traces import Trace, read, thread_tree, what_if
from traces.__main__ import main as traces_command

from .scripted_models import CHAT, save_model
from .test_recorded_models import TAGS

pytestmark = pytest.mark.anyio

ASKS = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
ASKS_OTHERWISE = '<tool_call>{"name": "clock", "arguments": {"zone": "UTC"}}</tool_call>'


class Clock:
    """A tool that gives something else each time."""

    def __init__(self) -> None:
        self.calls = 0

    async def clock(self, zone: str = "") -> str:
        """The time."""
        self.calls += 1
        return f"{self.calls}{zone}"


async def clock(zone: str = "") -> str:
    """The time, by another clock."""
    return f"99{zone}"


def save(directory: Path, *, is_other: bool = False) -> Path:
    """A model that calls the clock, or another that calls it otherwise."""
    scripts = {"[assistant]": ASKS, "[other]": ASKS_OTHERWISE, "[results]": "So."}
    save_model(directory, scripts, chat=CHAT, instead={"[assistant]": "[other]"} if is_other else None)
    return directory


async def recorded(directory: Path, *, count: int = 2) -> Trace:
    async with Engine.open(save(directory / "model"), trace=directory / "run.trace") as engine:
        engine.tools.add(Clock().clock)
        for _ in range(count):
            assert (await engine.run(messages=[user("when?")])).text == "So."
    return read(directory / "run.trace")


def results(trace: Trace) -> list[str]:
    return [child.text for root in thread_tree(trace.events) for child in root.children]


async def test_equal_calls_give_what_they_gave(tmp_path: Path) -> None:
    trace = await recorded(tmp_path)
    assert results(trace) == ["1", "2"]
    for tools in (None, _with(clock)):
        result = await what_if(trace, tools=tools)
        assert result.refused == ()
        for comparison in result.comparisons:
            assert not comparison.is_changed
            assert not comparison.partings
            assert (comparison.recorded.tool_calls, comparison.now.tool_calls, comparison.now.threads) == (1, 1, 1)
        # Each tree has got its own clock's time.
        assert result.now.prompt_tokens == result.recorded.prompt_tokens


async def test_other_calls_are_run_or_refused(tmp_path: Path) -> None:
    trace = await recorded(tmp_path)
    save(tmp_path / "other", is_other=True)
    result = await what_if(trace, checkpoint=tmp_path / "other")
    assert result.comparisons == ()
    assert sorted(result.refused)[0] == (
        'Tree 0 has no answer now: clock was not called with {"zone":"UTC"} then; give the tool, so that it is run.'
    )
    result = await what_if(trace, checkpoint=tmp_path / "other", tools=_with(clock))
    assert [comparison.now.answer for comparison in result.comparisons] == ["So.", "So."]


async def test_what_failed_then_fails_again(tmp_path: Path) -> None:
    protocol = {"tools": msgspec.to_builtins(TAGS), "prompt": "{prompt} Q"}
    save_model(tmp_path / "model", {" Q": f" {ASKS.replace('tool_call', 't')}", "=>": " so."}, protocol=protocol)

    async def broken() -> str:
        raise RuntimeError("no clock")

    async with Engine.open(tmp_path / "model", trace=tmp_path / "run.trace") as engine:
        engine.tools.add(broken, name="clock", errors="raise")
        with pytest.raises(Exception, match="no clock"):
            await engine.run("when")
    result = await what_if(read(tmp_path / "run.trace"))
    assert result.refused == ("Tree 0 has no answer now: clock: RuntimeError: no clock.",)


def _with(*functions: object) -> Tools:
    tools = Tools()
    for function in functions:
        tools.add(function)  # type: ignore[arg-type]
    return tools


async def test_the_command_takes_tools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await recorded(tmp_path, count=1)
    save(tmp_path / "other", is_other=True)
    arguments = ["what-if", str(tmp_path / "run.trace"), "--checkpoint", str(tmp_path / "other")]
    tool = ["--tool", "tests.tools.test_what_if:clock"]
    assert await anyio.to_thread.run_sync(traces_command, [*arguments, *tool]) == 0
    printed = capsys.readouterr().out
    assert "tool calls a question" in printed
    assert "1 questions" in printed
