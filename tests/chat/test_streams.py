"""Streams after chat messages: chunks join up to the text, and stop strings are found over the borders of tokens."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import Engine, Opened
from runtime.model.incremental import IncrementalDecoder, text_after
from runtime.model.tokenizer import Tokenizer
from tests.runtime_loop.scripted import ScriptedDevice
from tests.runtime_loop.scripted_core import Speaker

from .templates import STYLES, VOCABULARIES, pair

KINDS = [(style, vocabulary) for style in ("thinking", "llama-3", "mistral") for vocabulary in VOCABULARIES]
PIECES = ("the cat", " ", "\n", "é日", "🧵", "'s .", "<think>", "</think>", "<0xF0>", "a\n\nb", "  ")


def said_by(tokenizer: Tokenizer, style: str) -> st.SearchStrategy[list[int]]:
    """Tokens as a chat model says them: texts and control tokens whole, and any tokens between them."""
    whole = st.lists(st.sampled_from([*PIECES, *STYLES[style].tokens, STYLES[style].eos]), min_size=1, max_size=6)
    some = st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=4)
    return st.tuples(whole, some).map(lambda both: [*tokenizer.encode_inside("".join(both[0])), *both[1]])


@pytest.mark.parametrize(("style", "vocabulary"), KINDS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_what_settles_is_what_the_text_grows_by(style: str, vocabulary: str, data: st.DataObject) -> None:
    tokenizer = pair(style, vocabulary)[0]
    context, said = data.draw(said_by(tokenizer, style)), data.draw(said_by(tokenizer, style))
    decoder = IncrementalDecoder(tokenizer, context)
    settled = ""
    for end, token in enumerate(said, 1):
        settled += decoder.feed(token)
        grown = text_after(tokenizer, context, said[:end])
        assert grown.startswith(settled)
        if "\ufffd" not in tokenizer.decode(context + said[:end]):
            assert settled + decoder.pending == grown


@pytest.mark.parametrize(("style", "vocabulary"), KINDS)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_chunks_join_up_and_stop_strings_stop(style: str, vocabulary: str, data: st.DataObject) -> None:
    tokenizer = pair(style, vocabulary)[0]
    before, said = data.draw(said_by(tokenizer, style)), data.draw(said_by(tokenizer, style))
    text = text_after(tokenizer, before, said)
    start = data.draw(st.integers(0, max(0, len(text) - 1)))
    stop = [text[start : start + data.draw(st.integers(1, 5))] or "x"]

    def say(speaker: Speaker) -> int:
        return said[speaker.emitted % len(said)]

    async def check() -> None:
        async with Engine.from_device(Opened(device=ScriptedDevice(say), tokenizer=tokenizer)) as engine:
            async with engine.thread(before) as root:
                stream = root.stream(len(said), stop=stop)
                chunks = [chunk async for chunk in stream]
            async with engine.thread(before) as root:
                whole = await root.generate(len(said), stop=stop)
        assert stream.generation == whole
        assert "".join(chunk.text for chunk in chunks) == whole.text
        assert not any(string in whole.text for string in stop)
        assert text.startswith(whole.text) or "\ufffd" in text
        if whole.reason == "length":
            assert "\ufffd" in text or stop[0] not in text

    anyio.run(check)
