"""Models that call tools, on an engine: their memory stays, and what was recorded is played back and verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio.to_thread
import msgspec
import pytest

from runtime import Answer, Engine, ThreadWeaver, ToolTags
from tests.chat.templates import user
from traces import Trace, imbalances, read, thread_tree, totals_of, walk_threads
from traces.__main__ import main as traces_command

from .conftest import add, fail
from .scripted_models import CHAT, save_model

pytestmark = pytest.mark.anyio

TAGS = ToolTags(open="<t>", close="</t>", result=" = {result} =>")
CALL = '<t>{"name": "add", "arguments": {"one": 40, "other": 2}}</t>'
BROKEN = '<t>{"name": "fail", "arguments": {"text": "why"}}</t>'


def tools_alone(directory: Path) -> Path:
    protocol = {"tools": msgspec.to_builtins(TAGS), "prompt": "{prompt} Q"}
    save_model(directory, {" Q": f" Let me see. {CALL}", "=>": " so it is."}, protocol=protocol)
    return directory


def chat(directory: Path) -> Path:
    call, broken = (each.replace("t>", "tool_call>") for each in (CALL, BROKEN))
    save_model(directory, {"[assistant]": f"Both {call} and {broken}", "[results]": "Answered."}, chat=CHAT)
    return directory


def forking(directory: Path) -> Path:
    """A model that calls a tool between outlines and the tag that forks, and in a branch."""
    protocol = msgspec.structs.replace(ThreadWeaver, tools=TAGS, prompt="{prompt} Q", joined="\nJ")
    scripts = {
        " Q": f" <Outlines><Outline>1: x</Outline><Outline>2: y</Outline> {CALL}",
        "=>": " well </Outlines>",
        "1:": " one</Thread>",
        "2:": " two </Thread>",
        "\nJ": " so it is.",
    }
    save_model(directory, scripts, protocol=msgspec.to_builtins(protocol))
    return directory


KINDS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "tags": (tools_alone, {"prompt": "what"}, f" Let me see. {CALL} = 42 => so it is."),
    "chat": (chat, {"messages": [user("what")]}, "Answered."),
}


def registered(engine: Engine) -> Engine:
    engine.tools.add(add)
    engine.tools.add(fail)
    return engine


@pytest.mark.parametrize("kind", KINDS)
async def test_a_model_calls_tools_and_goes_on(kind: str, tmp_path: Path) -> None:
    save, question, text = KINDS[kind]
    model, path = save(tmp_path / "model"), tmp_path / "run.trace"
    async with registered(Engine.open(model, trace=path, page_size=4, num_pages=500)) as engine:
        answer = await engine.run(**question)
        assert engine.statistics.pages_used == 0
    assert answer.text == text
    trace = read(path)
    _agrees(trace, answer)
    assert await anyio.to_thread.run_sync(traces_command, ["replay", "--verify", str(path)]) == 0
    async with registered(Engine.playback(trace)) as engine:
        again = await engine.run(**question)
    assert (again.text, again.tokens, again.usage.tool_calls) == (answer.text, answer.tokens, answer.usage.tool_calls)
    if kind == "tags":
        # A chat template writes which tools there are into the prompt; else nobody need have added them.
        async with Engine.playback(trace) as engine:
            assert (await engine.run(**question)).text == text


def _agrees(trace: Trace, answer: Answer) -> None:
    """A thread keeps what it has computed while a tool works, and counts are those of the device."""
    assert imbalances(trace.events) == []
    (root,) = thread_tree(trace.events)
    length = sum(len(segment.tokens) for segment in root.segments)
    # The last token, a stop, is fed back to nobody.
    assert answer.usage.computed == length - 1
    assert totals_of(trace.events).threads == answer.usage.threads == 1
    called = [record for record in walk_threads([root]) if record.tool is not None]
    assert len(called) == answer.usage.tool_calls > 0
    assert [(wait.joined.children, wait.joined.delivered) for wait in root.waits] == [
        (tuple(record.path for record in called),) * 2
    ]


async def test_a_model_that_forks_calls_tools_before_the_tag_that_forks(tmp_path: Path) -> None:
    model, path = forking(tmp_path / "model"), tmp_path / "run.trace"
    async with registered(Engine.open(model, trace=path, page_size=4, num_pages=500)) as engine:
        answer = await engine.run("what")
    assert (answer.usage.threads, answer.usage.tool_calls, answer.usage.spawns_granted) == (3, 1, 2)
    assert answer.text.endswith("</Outlines> so it is.")
    trace = read(path)
    assert [record.path for record in walk_threads(thread_tree(trace.events)) if record.tool] == [(0, 0)]
    assert await anyio.to_thread.run_sync(traces_command, ["replay", "--verify", str(path)]) == 0
    async with registered(Engine.playback(trace)) as engine:
        assert (await engine.run("what")).text == answer.text
