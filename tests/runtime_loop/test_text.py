"""Text of prompts, messages and generations, in and out of contexts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from runtime import BoundProtocol, PromptError, ReasoningThread
from runtime.model.tokenizer import Tokenizer
from runtime.protocol import TagProtocol
from tests.runtime_loop.scripted import ScriptedDevice
from tests.runtime_loop.scripted_core import Speaker

from ..vocabularies import BYTES, byte_fallback, byte_level, metaspace, word_level, word_piece
from .engines import engine_on

pytestmark = pytest.mark.anyio

TOKENIZERS = [Tokenizer(kind()) for kind in (byte_level, byte_fallback, metaspace, word_piece, word_level)]
FALLBACK = TOKENIZERS[1]
BOS, EOS = 1, 2


def saying(tokens: Sequence[int]) -> ScriptedDevice:
    """A device whose threads say these tokens, again and again."""

    def say(speaker: Speaker) -> int:
        return tokens[speaker.emitted % len(tokens)]

    return ScriptedDevice(say)


def ids(text: str) -> tuple[int, ...]:
    return tuple(FALLBACK.encode(text))


def inside(text: str) -> tuple[int, ...]:
    return tuple(FALLBACK.encode_inside(text))


async def test_every_context_begins_as_the_tokenizer_begins_texts() -> None:
    seen: dict[str, tuple[int, ...]] = {}

    async def look(thread: ReasoningThread) -> str:
        seen[str(thread.path)] = thread.tokens
        return "sat"

    async with engine_on(saying(ids("a")), tokenizer=FALLBACK) as engine:
        async with engine.thread("the cat") as root:
            assert root.tokens == (BOS, *ids("the cat"))
            children = [root.spawn("the cat", program=look), root.fork(" sat", program=look)]
            await root.join(children)
            assert seen == {"(0, 0)": (BOS, *ids("the cat")), "(0, 1)": (BOS, *ids("the cat"), *inside(" sat"))}
            assert root.text == "<s> the catsatsat"
        async with engine.thread() as empty:
            empty.append("the cat")
            empty.append("s")
            assert empty.tokens == (BOS, *ids("the cat"), *inside("s"))
            assert empty.text == "<s> the cats"
        async with engine.thread([BOS]) as begun:
            begun.append("the cat")
            assert begun.tokens == (BOS, *ids("the cat"))


def test_protocols_begin_contexts_with_it_too_but_not_twice() -> None:
    fields: dict[str, Any] = {
        "spawn_open": "[", "spawn_close": "]", "join": "!", "return_open": "{", "end": ("}",), "child": "the {message}"
    }  # fmt: skip
    bound = BoundProtocol(TagProtocol(**fields), FALLBACK)
    assert bound.prompt("a") == [BOS, *ids("a")]
    written = BoundProtocol(TagProtocol(**fields | {"prompt": "<s>{prompt}", "child": "<s>{message}"}), FALLBACK)
    assert written.prompt("a") == FALLBACK.encode("<s>a")
    for protocol, child in ((bound, [BOS, *ids("the cat")]), (written, FALLBACK.encode("<s>cat"))):
        watcher = protocol.watcher(bound.prompt("a"))
        signals = [signal for token in inside("[ cat ]") for signal in watcher.feed(token)]
        assert [(signal.kind, list(signal.tokens)) for signal in signals] == [("spawn", child)]


async def test_stop_strings_leave_the_stop_tokens_on() -> None:
    tokens = (*ids("a cat"), EOS)
    async with engine_on(saying(tokens), tokenizer=FALLBACK, stop_tokens=[EOS]) as engine, engine.thread("a") as root:
        generation = await root.generate(20, stop=["zz", 7])
        assert (generation.tokens, generation.text, generation.reason) == (tokens, " a cat", "stop")


async def test_a_stop_string_begins_with_the_first_space() -> None:
    async with engine_on(saying(ids("cat sat")), tokenizer=FALLBACK) as engine, engine.thread("a") as root:
        generation = await root.generate(20, stop=[" c"])
        assert (generation.text, generation.reason) == ("", "stop")
        assert root.text == "<s> a cat"


async def test_a_stop_string_of_bytes_stops_at_its_last_byte() -> None:
    tokens = inside("é🧵éa")
    async with engine_on(saying(tokens), tokenizer=FALLBACK) as engine, engine.thread("a") as root:
        generation = await root.generate(30, stop=["🧵"])
        assert (generation.tokens, generation.text, generation.reason) == (tokens[:6], "é", "stop")


async def test_a_tokenizer_that_panics_fails_the_call_alone() -> None:
    inner = word_level()
    inner.decoder = decoders.Strip("a", 1, 1)  # its Rust code panics at a token "a"
    tokenizer = Tokenizer(inner)
    a, cat = (tokenizer.token_to_id(word) or 0 for word in ("a", "cat."))
    device = ScriptedDevice(lambda speaker: a if speaker.path == (0,) else cat)
    async with engine_on(device, tokenizer=tokenizer) as engine:
        async with engine.thread("the") as root:
            with pytest.raises(PromptError, match="cannot decode"):
                await root.generate(2)
        async with engine.thread("the") as root:
            assert (await root.generate(2)).text == "cat.cat."


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_chunks_join_up_to_the_text_that_the_context_gains(tokenizer: Tokenizer, data: st.DataObject) -> None:
    few = [known for name in (BYTES[0xF0], BYTES[0x9F], "▁cat", "a") if (known := tokenizer.token_to_id(name))]
    token = st.integers(0, tokenizer.vocab_size - 1) | st.sampled_from(few or [3])
    said = data.draw(st.lists(token, min_size=1, max_size=25))
    piece = tokenizer.decode(said)
    start = data.draw(st.integers(0, len(piece)))
    stop = data.draw(st.lists(st.sampled_from([piece[start : start + 3] or "x", " ", "at", "\ufffd"]), max_size=2))
    before = data.draw(st.lists(token, min_size=1, max_size=12))

    async def stream() -> None:
        async with engine_on(saying(said), tokenizer=tokenizer, stop_tokens=[EOS]) as engine:
            async with engine.thread(before) as root:
                stream = root.stream(25, stop=stop)
                chunks = [chunk async for chunk in stream]
            async with engine.thread(before) as root:
                generation = await root.generate(25, stop=stop)
                whole = tokenizer.decode(root.tokens)
        assert stream.generation == generation
        assert "".join(chunk.text for chunk in chunks) == generation.text
        assert generation.text in whole
        assert not any(string in generation.text for string in stop)

    anyio.run(stream)
