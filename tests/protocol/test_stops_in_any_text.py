"""Stop strings stop at the first token with which the text that a context gains has one of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Inner

from runtime.model.incremental import text_after
from runtime.model.tokenizer import Tokenizer
from runtime.protocol.stop_strings import StopStrings
from tests.vocabularies import KINDS, byte_fallback

Kind = Callable[[], Inner]


@cache
def tokenizer_of(kind: Kind) -> Tokenizer:
    return Tokenizer(kind())


def ids_of(kind: Kind) -> st.SearchStrategy[list[int]]:
    """Any tokens; every second list is of few, so that bytes, spaces and broken characters meet often."""
    tokenizer = tokenizer_of(kind)
    bytes_and_marks = [*(f"<0x{byte:02X}>" for byte in (*"é ,".encode(), 0xA7)), "▁", "the"]
    few = [token for name in bytes_and_marks if (token := tokenizer.token_to_id(name)) is not None]
    anything = st.integers(0, tokenizer.vocab_size - 1)
    return st.lists(anything, max_size=12) | st.lists(st.sampled_from(few) if few else anything, max_size=12)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=100)
def test_a_stop_string_stops_where_the_text_first_has_it(kind: Kind, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(kind)
    context, tokens = data.draw(ids_of(kind)), data.draw(ids_of(kind))
    gained = [text_after(tokenizer, context, tokens[:end]) for end in range(1, len(tokens) + 1)]
    ends = [gained[-1][begin : begin + 3] for begin in range(len(gained[-1]))] if gained else []
    stop = data.draw(st.sampled_from(["the", *(string for string in ends if "\ufffd" not in string)]))
    expected = next((end for end, text in enumerate(gained) if stop in text), None)
    watcher = StopStrings(tokenizer, (stop,), context)
    found = next((end for end, token in enumerate(tokens) if watcher.feed(token)), None)
    assert found == expected


def test_what_a_context_left_incomplete_is_no_text_before_it_is_complete() -> None:
    tokenizer = tokenizer_of(byte_fallback)
    space, begun, rest, other = (tokenizer.token_to_id(f"<0x{byte:02X}>") or 0 for byte in (*b" ", *"é".encode(), 0x0A))
    watcher = StopStrings(tokenizer, (" ",), [*tokenizer.encode("a"), space, begun])
    assert not watcher.feed(begun)
    assert not watcher.feed(other)
    assert StopStrings(tokenizer, (" é",), [*tokenizer.encode("a"), space, begun]).feed(rest)
