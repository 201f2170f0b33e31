"""Stop strings, alone and beside a protocol."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.link.commands import Signal
from runtime.protocol import Both, StopStrings
from tests.protocol.watching import bound_countdown, ids_of, piece_tokenizer, signals_of, spell, word_tokenizer


@given(
    st.text("ab\n", max_size=30), st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=3), st.data()
)
def test_stop_strings_stop_at_the_token_that_completes_one(text: str, strings: list[str], data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=len(text)))
    borders = sorted({0, *cuts, len(text)})
    pieces = [text[begin:end] for begin, end in pairwise(borders)]
    tokenizer = piece_tokenizer(pieces)
    watcher = StopStrings(tokenizer, strings)
    stopped = signals_of(watcher, ids_of(tokenizer, pieces))
    ends = [text.index(string) + len(string) for string in strings if string in text]
    if not ends:
        assert stopped == []
        return
    last = next(number for number, end in enumerate(borders[1:]) if end >= min(ends))
    assert [(signal.kind, signal.stops) for signal in stopped] == [("stop", True)]
    assert stopped[0].start + len(stopped[0].tokens) == last + 1
    held = tokenizer.decode(stopped[0].tokens)
    assert any(string in held for string in strings)


def test_stop_strings_recognise_special_tokens() -> None:
    tokenizer = piece_tokenizer([], specials=["</s>"])
    (eos,) = ids_of(tokenizer, ["</s>"])
    assert signals_of(StopStrings(tokenizer, ["</s>"]), [5, eos]) == [Signal("stop", (eos,), 1, stops=True)]


@pytest.mark.parametrize("strings", [[], [""], ["a", ""]])
def test_empty_stop_strings_are_refused(strings: list[str]) -> None:
    with pytest.raises(ValueError, match="none of them empty"):
        StopStrings(word_tokenizer(), strings)


def test_both_watchers_hear_every_token() -> None:
    tokenizer = word_tokenizer()
    pair = Both(bound_countdown().watcher(), StopStrings(tokenizer, ["b c", "<end>"]))
    signals = signals_of(pair, spell("<spawn> a </spawn> b c"))
    assert [signal.kind for signal in signals] == ["spawn", "stop"]
    pair = Both(bound_countdown().watcher(), StopStrings(tokenizer, ["b c", "<end>"]))
    assert [signal.kind for signal in signals_of(pair, spell("a <end>"))] == ["end"]
