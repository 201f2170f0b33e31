"""Where a thread that a model drives is cut short, or goes round, and what its joins are made on."""

from __future__ import annotations

from collections.abc import Sequence
from threading import get_ident

import msgspec
import pytest

from runtime import Engine, ProtocolError
from runtime.protocol import BoundProtocol, TagProtocol
from tests.runtime_loop.scripted import ScriptedDevice
from tests.runtime_loop.scripted_core import Speaker, assert_all_closed, scripts
from tests.runtime_loop.words import PROTOCOL, bound_protocol, ids, word_tokenizer

from .engines import engine_on
from .programs import text_of

pytestmark = pytest.mark.anyio


def over(device: ScriptedDevice, protocol: BoundProtocol) -> Engine:
    return engine_on(device, protocol=protocol)


async def test_a_child_that_was_cut_returned_nothing() -> None:
    """Without a protocol the model's text is the message, once it has ended."""
    device = ScriptedDevice(scripts({"1": "a b <end>", "2": "a b c d e <end>"}))
    async with engine_on(device, stop_tokens=ids("<end>")) as engine:
        answer = await engine.run("2", max_tokens=3)
        assert (answer.text, answer.tokens, answer.message, answer.reason) == ("", ids("a b c"), (), "length")
        async with engine.thread("x") as root:
            (cut,) = await root.join([root.spawn("2", max_tokens=2)])
            assert (cut.tokens, cut.message, root.text) == (ids("a b"), (), "x")
            children = [root.spawn("2", max_tokens=2), root.spawn("1", max_tokens=3)]
            first = await root.first(children)
            assert first is not None
            assert (first.text, first.reason) == ("a b", "stop")
            assert await root.first([root.spawn("2", max_tokens=2)]) is None


async def test_a_thread_under_a_protocol_that_was_cut_gives_what_it_had_emitted() -> None:
    device = ScriptedDevice(scripts({"1": "<spawn> 2 </spawn> <join> a b c d", "2": "<return> 9 9 9 <end>"}))
    async with over(device, bound_protocol()) as engine, engine.thread("5") as root:
        child = root.spawn("1", max_tokens=6)
        (answer,) = await root.join([child])
        assert (answer.text, answer.message, answer.reason) == ("", (), "length")
        assert answer.tokens == ids("<spawn> 2 </spawn> <join> a b")
        assert root.text == "5"
        assert text_of(child) == "1 <spawn> 2 </spawn> <join> <message> 9 9 9 </message> a b"


@pytest.mark.parametrize("spawn", ["", "<spawn> 2 </spawn>"])
async def test_a_cut_that_leaves_the_context_as_it_was_ends_the_thread(spawn: str) -> None:
    """Its model would say the same again, without end."""
    protocol = bound_protocol(block_open="<block>", block_close="</block>", join="", cuts_block=True)
    # A thread says what follows from its context alone.
    block = ids(f"<block> {spawn} </block>")
    said = {ids("1"): ids("a"), ids("2"): ids("<end>")}

    def say(speaker: Speaker) -> int:
        tokens = tuple(speaker.tokens)
        if tokens in said:
            return said[tokens][0]
        return block[len(tokens) - 2]

    device = ScriptedDevice(say)
    async with over(device, protocol) as engine:
        with pytest.raises(ProtocolError, match="delivered nothing"):
            await engine.run("1")
    assert_all_closed(device.core)


class WatchedProtocol(BoundProtocol):
    """Notes on which threads deliveries are made."""

    def __init__(self, protocol: TagProtocol) -> None:
        super().__init__(protocol, word_tokenizer())
        self.made_on: list[int] = []

    def delivery(self, messages: Sequence[tuple[int, ...]], prompts: Sequence[tuple[int, ...]] = ()) -> list[int]:
        self.made_on.append(get_ident())
        return super().delivery(messages, prompts)


async def test_a_pattern_is_not_searched_on_the_event_loop() -> None:
    protocol = WatchedProtocol(
        msgspec.structs.replace(PROTOCOL, child_pattern="(?P<asked>.+)", delivered="<message> {asked} {message}")
    )
    device = ScriptedDevice(scripts({"1": "<spawn> 2 </spawn> <join> <end>", "2": "<return> 7 <end>"}))
    async with over(device, protocol) as engine, engine.thread("5") as root:
        child = root.spawn("1")
        await root.join([child])
        assert text_of(child) == "1 <spawn> 2 </spawn> <join> <message> 2 7 <end>"
    assert protocol.made_on
    assert get_ident() not in protocol.made_on
