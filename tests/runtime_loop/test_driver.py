"""Threads that a model orchestrates, under a protocol."""

from __future__ import annotations

import random

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import BraidError, CapacityError, Limits, PromptError, ProtocolError
from runtime.link.commands import Extend
from runtime.link.events import Event, Joined, RunStarted, Spawned, ThreadEnded
from tests.runtime_loop.engines import TREE, engine_on, engine_under
from tests.runtime_loop.programs import text_of
from tests.runtime_loop.scripted import ScriptedDevice, SteppedDevice
from tests.runtime_loop.scripted_core import Speaker, assert_all_closed, scripts
from tests.runtime_loop.turns import turn
from tests.runtime_loop.words import WORDS, bound_protocol, ids

pytestmark = pytest.mark.anyio


async def test_a_model_spawns_joins_and_answers() -> None:
    device = ScriptedDevice(scripts(TREE))
    async with engine_under(device) as engine:
        answer = await engine.run("1")
        assert (answer.text, answer.tokens, answer.reason, answer.path) == ("9 9", (9, 9), "returned", (0,))
        assert answer.usage.threads == 5
        assert (answer.usage.spawns_requested, answer.usage.spawns_granted) == (4, 4)
        assert answer.usage.generated == engine.usage.generated == device.statistics.generated
    received = [c.tokens for c in device.core.commands if isinstance(c, Extend) and c.thread == (0,)]
    assert received == [ids("1"), ids("<message> 7 </message> <message> 8 </message>"), ids("<message> 7 </message>")]
    events = device.core.events
    assert [e.prompt for e in events if isinstance(e, RunStarted)] == ["1"]
    assert {e.child for e in events if isinstance(e, Spawned)} == {(0, 0), (0, 1), (0, 1, 0), (0, 2)}
    assert [e.children for e in events if isinstance(e, Joined) and e.thread == (0,)] == [((0, 0), (0, 1)), ((0, 2),)]
    assert {e.thread: e.text for e in events if isinstance(e, ThreadEnded)} == {
        (0, 0): "7",
        (0, 1, 0): "7",
        (0, 1): "8",
        (0, 2): "7",
        (0,): "9 9",
    }
    assert_all_closed(device.core)


async def test_a_join_without_spawns_gets_what_the_protocol_says_of_none() -> None:
    """A parent that joins nobody must see that the join is over, or it would join again."""
    protocol = bound_protocol(joined="<message> {children} </message>", forbidden=())
    device = ScriptedDevice(scripts({"1": "<join> <return> 9 <end>"}))
    async with engine_under(device, protocol) as engine:
        assert (await engine.run("1")).text == "9"
    received = [c.tokens for c in device.core.commands if isinstance(c, Extend)]
    assert received == [ids("1"), ids("<message> </message>")]


async def test_children_start_while_their_parent_decodes() -> None:
    device = SteppedDevice(
        scripts({"1": "<spawn> 2 </spawn> a b c d e <join> <return> 9 <end>", "2": "<return> 7 <end>"})
    )
    async with engine_under(device) as engine, anyio.create_task_group() as group:
        group.start_soon(engine.run, "1")
        await turn()
        device.step(3)
        await turn()
        device.take_commands()
        assert set(device.core.threads) == {(0,), (0, 0)}
        assert all(thread.work is not None for thread in device.core.threads.values())
        device.step(3)
        await turn()
        device.take_commands()
        # The child is over before its parent comes to the join.
        assert set(device.core.threads) == {(0,)}
        for _ in range(10):
            device.step()
            await turn()
    assert_all_closed(device.core)


async def test_a_program_may_spawn_children_that_models_drive() -> None:
    device = ScriptedDevice(scripts(TREE))
    async with engine_under(device) as engine, engine.thread("5") as root:
        answers = await root.join([root.spawn("1"), root.spawn("3")])
        assert [answer.text for answer in answers] == ["9 9", "8"]
        assert root.text == "5 <message> 9 9 </message> <message> 8 </message>"


async def test_malformed_output_ends_its_thread() -> None:
    device = ScriptedDevice(
        scripts({"1": "<spawn> 2 </spawn> <join> <return> 9 <end>", "2": "</spawn> <end>", "4": "<message> <end>"})
    )
    async with engine_under(device) as engine:
        with pytest.raises(ProtocolError, match=r"Thread \(0,\)"):
            await engine.run("2")
        with pytest.raises(ProtocolError, match=r"Thread \(1, 0\)"):
            await engine.run("1")
        with pytest.raises(ProtocolError):
            await engine.run("4")
    assert_all_closed(device.core)
    device = ScriptedDevice(scripts({"2": "</spawn> <return> 7 <end>"}))
    async with engine_under(device, bound_protocol(on_malformed="ignore")) as engine:
        assert (await engine.run("2")).text == "7"


async def test_several_failing_children_are_a_group() -> None:
    def say(speaker: Speaker) -> int:
        if speaker.tokens[0] == 2:
            raise CapacityError("too large")
        return scripts(TREE)(speaker)

    device = ScriptedDevice(say)
    async with engine_under(device) as engine:
        with pytest.raises(ExceptionGroup, match="2 children") as caught:
            await engine.run("1")
        assert [type(error) for error in caught.value.exceptions] == [CapacityError, CapacityError]
    assert_all_closed(device.core)


async def test_the_context_ends_a_thread_without_a_message() -> None:
    device = ScriptedDevice(scripts({"1": "<spawn> 2 </spawn> <join> <return> 9 <end>", "2": "z z z z z z"}), context=8)
    async with engine_under(device, max_context=8) as engine:
        assert (await engine.run("2")).reason == "context"
        answer = await engine.run("1")
        assert answer.text == "9"
        assert answer.usage.max_context == 8
    # Five messages do not fit behind the join.
    device = ScriptedDevice(scripts({"1": "<spawn> 2 </spawn> <join> <end>", "2": "<return> 7 7 7 <end>"}), context=8)
    async with engine_under(device, max_context=8) as engine:
        answer = await engine.run("1")
        assert (answer.text, answer.reason) == ("", "context")
    assert_all_closed(device.core)


async def test_max_tokens_bounds_a_thread_over_all_its_generates() -> None:
    device = ScriptedDevice(
        scripts({"1": "<spawn> 2 </spawn> <join> z z z z z <return> 9 <end>", "2": "<return> 7 <end>"})
    )
    async with engine_under(device) as engine:
        answer = await engine.run("1", max_tokens=6)
        assert (answer.text, answer.reason, answer.usage.generated) == ("", "length", 9)
        answer = await engine.run("1", max_tokens=4)
        assert (answer.reason, answer.usage.generated) == ("length", 7)
        assert (await engine.run("1", max_tokens=12)).text == "9"
        with pytest.raises(ValueError, match="max_tokens"):
            await engine.run("1", max_tokens=0)
        with pytest.raises(PromptError, match="empty"):
            await engine.run([])


async def test_a_join_may_cut_its_block_out_of_the_context() -> None:
    protocol = bound_protocol(
        block_open="<block>",
        block_close="</block>",
        join="",
        cuts_block=True,
        forbidden=(),
        delivered="{message}",
        end=("<end>",),
    )
    before = scripts(
        {
            "1": "a <block> <spawn> 2 </spawn> <spawn> 3 </spawn> </block>",
            "2": "<return> 7 <end>",
            "3": "<return> 8 <end>",
        }
    )

    def say(speaker: Speaker) -> int:
        if tuple(speaker.tokens[:4]) == ids("1 a 7 8"):
            return ids("<return> 9 <end>")[speaker.emitted - 1]
        return before(speaker)

    device = ScriptedDevice(say)
    async with engine_under(device, protocol) as engine, engine.thread("5") as root:
        child = root.spawn("1")
        (answer,) = await root.join([child])
        assert answer.text == "9"
        assert text_of(child) == "1 a 7 8 <return> 9 <end>"
    assert_all_closed(device.core)


async def test_a_stop_token_ends_a_thread_that_did_not_end_itself() -> None:
    device = ScriptedDevice(scripts({"1": "a <return> 9 9 y", "2": "b y"}))
    async with engine_under(device, stop_tokens=ids("y")) as engine:
        answer = await engine.run("2")
        assert (answer.text, answer.reason) == ("", "nothing")
        assert (await engine.run("1")).reason in ("nothing", "returned")


async def test_a_run_without_a_protocol_generates_to_its_stop() -> None:
    device = ScriptedDevice(scripts({"1": "a b y"}))
    async with engine_on(device, stop_tokens=ids("y")) as engine:
        answer = await engine.run("1")
        assert (answer.text, answer.tokens, answer.reason) == ("a b", ids("a b"), "stop")
        assert (await engine.run("1", max_tokens=1)).reason == "length"


async def test_observers_see_the_tree_and_cannot_break_it() -> None:
    device = ScriptedDevice(scripts(TREE))
    seen: list[str] = []

    def observe(event: Event) -> None:
        seen.append(type(event).__name__)
        raise ZeroDivisionError

    async with engine_under(device, observer=observe) as engine:
        assert (await engine.run("1")).text == "9 9"
    assert seen.count("Spawned") == 4
    assert seen.count("ThreadEnded") == 5
    assert len(seen) == len(device.core.events)


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32 - 1), context=st.integers(3, 40), ignore=st.booleans())
def test_no_stream_of_tokens_hangs_or_breaks_the_engine(seed: int, context: int, ignore: bool) -> None:
    words = ["1", "2", *(word for word in WORDS if word.startswith("<"))]
    tokens = [WORDS.index(word) for word in words]

    def say(speaker: Speaker) -> int:
        return random.Random(f"{seed} {speaker.path} {len(speaker.tokens)}").choice(tokens)

    async def main() -> None:
        device = ScriptedDevice(say, context)
        protocol = bound_protocol(on_malformed="ignore" if ignore else "end")
        async with engine_under(device, protocol, max_context=context) as engine:
            for limits in (Limits(threads=20, tree_depth=3), Limits(threads=20, tokens=30)):
                try:
                    answer = await engine.run("1", limits=limits)
                    assert answer.usage.threads <= 20
                except (BraidError, ExceptionGroup):
                    pass
            assert engine.usage.generated == device.statistics.generated
            assert engine.usage.iterations == device.statistics.iterations
        assert_all_closed(device.core)

    anyio.run(main, backend="asyncio" if seed % 2 else "trio")
