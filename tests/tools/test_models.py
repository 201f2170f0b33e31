"""Tools that models call: by tags that a protocol declares."""

from __future__ import annotations

import anyio
import pytest

from policies import ByRole, Fixed, Limits, Policy
from runtime import Answer, Engine, ProtocolError, ReasoningThread, ToolError, ToolProtocol, ToolTags
from runtime.link.commands import ForeseeingWatcher, Foresight, Generate, OpenThread, Signal
from runtime.link.events import Joined, Spawned, ToolCalled
from runtime.model.tokenizer import Tokenizer
from runtime.protocol import Both, BoundProtocol, BoundToolProtocol, BoundToolTags
from tests.runtime_loop.engines import engine_on
from tests.runtime_loop.scripted import ScriptedDevice
from tests.runtime_loop.scripted_core import Speaker, scripts
from tests.runtime_loop.words import bound_protocol, ids, word_tokenizer
from tests.vocabularies import byte_level

from .conftest import with_tools

pytestmark = pytest.mark.anyio

CALC = ToolTags(open="<block>", close="</block>", tool="calc", argument="text")
WAITING = ToolTags(open="<block>", close="</block>", wait="<message>", tool="calc", argument="text")


async def calc(text: str) -> int:
    """The sum of numbers."""
    return sum(map(int, text.split()))


def engine_with(texts: dict[str, str], protocol: BoundProtocol | BoundToolProtocol) -> tuple[Engine, ScriptedDevice]:
    device = ScriptedDevice(scripts(texts))
    return engine_on(device, protocol=protocol, records=True, stop_tokens=ids("<end>")), device


def tools_alone(tags: ToolTags = CALC) -> BoundToolProtocol:
    return BoundToolProtocol(ToolProtocol(tools=tags), word_tokenizer())


async def asked(engine: Engine, prompt: str = "q") -> Answer:
    engine.tools.add(calc)
    async with engine:
        return await engine.run(prompt)


async def test_results_stand_behind_their_calls() -> None:
    engine, device = engine_with({"q": "a <block> 1 2 </block> b <block> 3 4 </block> c <end>"}, tools_alone())
    answer = await asked(engine)
    assert (answer.text, answer.reason) == ("a <block> 1 2 </block> 3 b <block> 3 4 </block> 7 c", "stop")
    assert (answer.usage.tool_calls, answer.usage.threads, answer.usage.generated) == (2, 1, 12)
    assert [event.delivered for event in device.core.events if isinstance(event, Joined)] == [((0, 0),), ((0, 1),)]
    spawns = [event for event in device.core.events if isinstance(event, Spawned)]
    assert [(event.child, event.by_model, event.tokens) for event in spawns] == [((0, 0), True, ()), ((0, 1), True, ())]


async def test_calls_run_side_by_side_where_there_is_a_tag_that_waits() -> None:
    engine, _ = engine_with({"q": "<block> 1 </block> <block> 2 </block> a <message> b <end>"}, tools_alone(WAITING))
    both, at_work = anyio.Event(), 0

    async def calc(text: str) -> str:
        nonlocal at_work
        at_work += 1
        if at_work == 2:
            both.set()
        await both.wait()
        return text

    engine.tools.add(calc)
    async with engine:
        answer = await engine.run("q")
    assert answer.text == "<block> 1 </block> <block> 2 </block> a <message> 1 2 b"


async def test_results_are_put_as_declared() -> None:
    tags = ToolTags(
        open="<block>", close="</block>", tool="calc", argument="text", result="<message> {result} </message>"
    )
    engine, _ = engine_with({"q": "<block> 1 2 </block> <end>"}, tools_alone(tags))
    assert (await asked(engine)).text == "<block> 1 2 </block> <message> 3 </message>"


async def test_tools_beside_spawns_wherever_they_stand() -> None:
    """Outside of messages, within a spawn's message, whose child calls one too, and within a returned message."""
    texts = {
        "1": "<block> 1 1 </block> <spawn> 2 <block> 5 5 </block> 4 </spawn> a <join> "
        "<return> <block> 9 </block> 8 <end>",
        "2": "x <block> 3 3 </block> <return> 7 <end>",
    }
    engine, device = engine_with(texts, bound_protocol(tools=CALC))
    answer = await asked(engine, "1")
    assert answer.text == "<block> 9 </block> 8", "results are no part of messages"
    assert answer.usage.tool_calls == 4
    spawns = [event for event in device.core.events if isinstance(event, Spawned)]
    assert [(event.child, event.tokens) for event in spawns if event.tokens] == [
        ((0, 2), ids("2 <block> 5 5 </block> 4"))
    ]
    called = [event.thread for event in device.core.events if isinstance(event, ToolCalled)]
    assert sorted(called) == [(0, 0), (0, 1), (0, 2, 0), (0, 3)]
    assert device.core.threads == {}


async def test_what_a_call_fails_of_is_read_or_ends_the_thread() -> None:
    async def broken(text: str) -> str:
        raise KeyError(text)

    async def number(text: str) -> str:
        raise ToolError("5")

    tags = ToolTags(open="<block>", close="</block>", tool="t", argument="text")
    for function, errors, match in ((broken, "raise", "t: KeyError: '1'"), (number, "raise", "5")):
        engine, _ = engine_with({"q": "<block> 1 </block> <end>"}, tools_alone(tags))
        engine.tools.add(function, name="t", errors=errors)  # type: ignore[arg-type]
        async with engine:
            with pytest.raises(ToolError, match=match):
                await engine.run("q")


async def test_limits_are_told_the_model() -> None:
    tokenizer = _bytes()
    said = tokenizer.encode('<t>{"name": "add", "arguments": {"one": 1}}</t>' * 3 + ".")
    device = ScriptedDevice(lambda speaker: said[speaker.emitted])
    protocol = BoundToolProtocol(ToolProtocol(tools=ToolTags(open="<t>", close="</t>")), tokenizer)
    engine = with_tools(engine_on(device, tokenizer=tokenizer, protocol=protocol, stop_tokens=[said[-1]], records=True))
    async with engine:
        answer = await engine.run("q", limits=Limits(tool_calls=2))
    call = '<t>{"name": "add", "arguments": {"one": 1}}</t>'
    refused = "Error: no more tools may be called: its own limit is 2 tool calls, and all were made"
    assert answer.text == f"{call}2{call}2{call}{refused}"
    spawns = [event for event in device.core.events if isinstance(event, Spawned)]
    assert [event.child for event in spawns] == [(0, 0), (0, 1), None]
    assert "limit is 2 tool calls" in spawns[-1].reason


def _bytes() -> Tokenizer:
    return Tokenizer(byte_level())


@pytest.mark.parametrize(
    ("written", "result"),
    [
        ('{"name": "add", "arguments": {"one": 40, "other": 2}}', "42"),
        ('\n{"arguments": {"one": 1}, "name": "add"}\n', "2"),
        ('{"name": "add", "arguments": {"one": "x"}}', 'Error: add cannot be called with \'{"one":"x"}\': Expected'),
        ('{"name": "add"}', "Error: add cannot be called with '{}': Object missing required field `one`"),
        ('{"name": "sub", "arguments": {}}', "Error: There is no tool sub; there are add, fail, raises, never, late"),
        ('{"name": "fail", "arguments": {"text": "why?"}}', "Error: fail: RuntimeError: why?"),
        ('{"name": "late"}', "Error: late took longer than 0 s"),
        ("add 1 2", "Error: This call is no JSON"),
        ("[1]", "Error: This call has no name; write"),
    ],
)
async def test_calls_as_json(written: str, result: str) -> None:
    tokenizer = _bytes()
    said = tokenizer.encode(f"<t>{written}</t>.")
    device = ScriptedDevice(lambda speaker: said[speaker.emitted])
    protocol = BoundToolProtocol(ToolProtocol(tools=ToolTags(open="<t>", close="</t>")), tokenizer)
    engine = with_tools(engine_on(device, tokenizer=tokenizer, protocol=protocol, stop_tokens=[said[-1]]))
    async with engine:
        answer = await engine.run("q")
    assert answer.text.startswith(f"<t>{written}</t>{result}")


def fed(bound: BoundToolTags, tokens: list[int]) -> list[Signal]:
    watcher = bound.watcher()
    return [signal for token in tokens for signal in watcher.feed(token)]


def test_tags_are_found_on_ids_and_in_text_alike() -> None:
    words = BoundToolTags(WAITING, word_tokenizer())
    assert fed(words, list(ids("</block> a <block> 1 <block> 2 3 </block> </block> <message>"))) == [
        Signal("tool", start=4, text="2 3"),
        Signal("results", start=9, stops=True),
    ]
    tokenizer = _bytes()
    text = BoundToolTags(ToolTags(open="<t>", close="</t>", wait="<w>"), tokenizer)
    found = fed(text, tokenizer.encode("</t> é<t>1 <t>é 3</t></t><w>"))
    assert [(signal.kind, signal.text, signal.stops) for signal in found] == [
        ("tool", "é 3", False),
        ("results", "", True),
    ]


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"open": "", "close": "b"}, "open is empty"),
        ({"open": "a", "close": "ab"}, "'a' is contained in another"),
        ({"open": "a", "close": "b", "tool": "x"}, "tool and argument belong together"),
        ({"open": "a", "close": "b", "result": "x"}, "lacks {result}"),
    ],
)
def test_declarations_that_contradict_themselves_are_refused(fields: dict[str, str], match: str) -> None:
    with pytest.raises(ProtocolError, match=match):
        ToolTags(**fields)


async def test_a_call_in_a_block_that_is_cut_ends_the_thread() -> None:
    tags = ToolTags(open="x", close="y", tool="calc", argument="text")
    protocol = bound_protocol(join="", block_open="<block>", block_close="</block>", cuts_block=True, tools=tags)
    inside, outside = "<block> x 1 y <spawn> 2 </spawn> </block>", "x 1 y <block> <spawn> 2 </spawn> </block>"
    engine, _ = engine_with({"q": inside}, protocol)
    engine.tools.add(calc)
    async with engine:
        with pytest.raises(ProtocolError, match="a block that is cut out of the context has a tool's call in it"):
            await engine.run("q")
    before, behind = scripts({"q": outside, "2": "<return> 7 <end>"}), ids("<return> 3 <end>")

    def say(speaker: Speaker) -> int:
        """What is cut is not said again, since it is seen what the child has returned."""
        tokens = list(speaker.tokens)
        delivered = ids("</message>")[0]
        return behind[len(tokens) - tokens.index(delivered) - 1] if delivered in tokens else before(speaker)

    device = ScriptedDevice(say)
    answer = await asked(engine_on(device, protocol=protocol))
    assert (answer.text, answer.usage.tool_calls, answer.usage.threads) == ("3", 1, 2)
    assert device.core.threads == {}


def test_lanes_need_not_stop_at_every_token() -> None:
    """Where tags are tokens, what happens happens at those alone, and so it is for a pair of watchers."""
    (open_, close, wait) = ids("<block> </block> <message>")
    watcher = BoundToolTags(WAITING, word_tokenizer()).watcher()
    assert isinstance(watcher, ForeseeingWatcher)
    assert watcher.foresee() == Foresight(frozenset({close, wait}), 2**31)
    spawns = bound_protocol(longest_message=5).watcher()
    assert isinstance(spawns, ForeseeingWatcher)
    both, of_spawns = Both(watcher, spawns).foresee(), spawns.foresee()
    assert both is not None
    assert of_spawns is not None
    assert both == Foresight(of_spawns.tokens | {close, wait}, 5)
    assert open_ not in both.tokens
    in_text = BoundToolTags(ToolTags(open="<t>", close="</t>"), _bytes()).watcher()
    assert Both(in_text, spawns).foresee() is None


async def test_a_thread_that_calls_tools_alone_is_no_parent(device: ScriptedDevice, engine: Engine) -> None:
    depth = ByRole(root=Fixed(1), parent=Fixed(2), otherwise=Fixed(3))

    async def child(thread: ReasoningThread) -> None:
        await thread.call("add", one=1)
        await thread.generate(1)

    async with engine, engine.thread("a", policy=Policy(depth=depth)) as root:
        await root.spawn("b", program=child)
    asked = [command for command in device.sent if isinstance(command, OpenThread | Generate)]
    assert [command.depth for command in asked if command.thread == (0, 0)] == [Fixed(3), None]
