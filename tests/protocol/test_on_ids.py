"""Protocols whose tags are tokens: Countdown's, and whatever a model may emit instead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.link.commands import ForeseeingWatcher, Foresight, Signal
from runtime.protocol import BoundProtocol
from tests.protocol.watching import (
    COUNTDOWN,
    WORDS,
    bound_countdown,
    ids_of,
    piece_tokenizer,
    signals_of,
    spell,
    word_tokenizer,
)

LETTERS = "OCJWEMmabc?"
"""One letter a word, so that regular expressions can read a stream of words."""


def test_countdown_spawns_and_joins_on_ids() -> None:
    bound = bound_countdown()
    assert bound.on_ids
    assert bound.prompt("a b c") == spell("a b c")
    stream = spell("a <spawn> a b </spawn> <spawn> c </spawn> <join>")
    assert signals_of(bound.watcher(), stream) == [
        Signal("spawn", tuple(spell("a b")), start=1),
        Signal("spawn", tuple(spell("c")), start=5),
        Signal("join", start=8, stops=True),
    ]


def test_countdown_children_start_before_the_join() -> None:
    watcher = bound_countdown().watcher()
    assert [len(watcher.feed(token)) for token in spell("<spawn> a </spawn> b")] == [0, 0, 1, 0]


def test_countdown_returns_what_stands_between_win_and_end() -> None:
    bound = bound_countdown()
    emitted = spell("a b <win> b c <end>")
    assert signals_of(bound.watcher(), emitted) == [Signal("end", tuple(spell("b c")), start=2, stops=True)]
    assert bound.returned(emitted) == tuple(spell("b c"))
    assert signals_of(bound.watcher(), spell("a <end>")) == [Signal("end", (), start=1, stops=True)]
    assert bound.returned(spell("a <end>")) == ()
    assert bound.returned(spell("<spawn> a </spawn> <join> <win> b <end>")) == tuple(spell("b"))
    assert bound.returned(spell("<win> b")) == ()


def test_countdown_delivers_the_first_four_messages_in_spawn_order() -> None:
    bound = bound_countdown()
    messages = [tuple(spell(text)) for text in ("a", "", "b c", "a", "", "c", "b", "")]
    expected = " ".join(f"<message> {text} </message>" for text in ("a", "b c", "a", "c"))
    assert bound.delivery(messages) == spell(expected)
    assert bound.delivery([()]) == []
    assert bound.delivery([]) == []


def test_templates_over_ids_wrap_messages_and_prompts() -> None:
    bound = bound_countdown(
        child="a {message} b",
        prompt="c {prompt}",
        delivered="{message} c",
        delivered_nothing="b",
        joined="a {children} a",
    )
    assert bound.on_ids
    assert bound.prompt("b") == spell("c b")
    spawned = signals_of(bound.watcher(), spell("<spawn> c </spawn>"))
    assert spawned[0].tokens == tuple(spell("a c b"))
    assert bound.delivery([tuple(spell("a a")), ()]) == spell("a a a c b a")


def test_a_tag_inside_another_token_makes_matching_go_by_text() -> None:
    tokenizer = piece_tokenizer(
        ["\n\n", "<spawn>", "<join>", "<win>", "<end>"], ["<spawn>", "<join>", "<win>", "<end>"]
    )
    protocol = msgspec.structs.replace(COUNTDOWN, spawn_close="\n", forbidden=(), delivered="{message}")
    bound = BoundProtocol(protocol, tokenizer)
    assert not bound.on_ids
    signals = signals_of(bound.watcher(), ids_of(tokenizer, ["\n", "<spawn>", "x", "\n\n"]))
    assert signals == [Signal("spawn", tuple(tokenizer.encode("x")), start=1)]


def test_a_block_may_hold_the_spawns_on_ids() -> None:
    words = (*WORDS, "<block>", "</block>")
    protocol = msgspec.structs.replace(
        COUNTDOWN, join="", forbidden=(), block_open="<block>", block_close="</block>", cuts_block=True
    )
    bound = BoundProtocol(protocol, word_tokenizer(words))
    assert bound.on_ids
    stream = spell("a <block> <spawn> b </spawn> </block>", words)
    assert signals_of(bound.watcher(), stream) == [
        Signal("spawn", tuple(spell("b")), start=2),
        Signal("join", start=1, stops=True, keep=1),
    ]
    outside = signals_of(bound.watcher(), spell("<spawn> b </spawn>"))
    assert [signal.kind for signal in outside] == ["malformed"]


@pytest.mark.parametrize(
    ("stream", "start", "reason"),
    [
        ("a </spawn>", 1, "'</spawn>' cannot stand outside any message"),
        ("<spawn> a <spawn>", 2, "'<spawn>' cannot stand inside a spawn message"),
        ("<spawn> a <join>", 2, "'<join>' cannot stand inside a spawn message"),
        ("<spawn> a <end>", 2, "'<end>' cannot stand inside a spawn message"),
        ("<win> a <join>", 2, "'<join>' cannot stand inside a returned message"),
        ("<win> a <win>", 2, "'<win>' cannot stand inside a returned message"),
        ("a <message>", 1, "'<message>' cannot stand outside any message"),
        ("a <spawn> </spawn>", 1, "a spawn's message is empty"),
        ("a <spawn> a a a a a", 1, "longer than 4 tokens"),
        ("<win> a a a a a", 0, "longer than 4 tokens"),
    ],
)
def test_malformed_streams_end_the_thread_or_are_ignored(stream: str, start: int, reason: str) -> None:
    signals = signals_of(bound_countdown().watcher(), spell(stream))
    assert [(signal.kind, signal.start, signal.stops) for signal in signals] == [("malformed", start, True)]
    assert reason in signals[0].reason
    assert signals_of(bound_countdown(on_malformed="ignore").watcher(), spell(stream)) == []


streams = st.lists(st.sampled_from(range(len(WORDS))), max_size=40)


def as_letters(tokens: Sequence[int]) -> str:
    return "".join(LETTERS[token] for token in tokens)


def summary(signals: Iterable[Signal]) -> list[tuple[str, int, str]]:
    return [(signal.kind, signal.start, as_letters(signal.tokens)) for signal in signals]


@given(streams)
def test_fuzz_signals_are_what_a_regular_expression_finds(tokens: list[int]) -> None:
    """Reading stops at the first thing that is not well-formed, which is malformed unless the stream just ends."""
    text = as_letters(tokens)
    well_formed = re.compile(r"[abc?]|O(?P<spawn>[abc?]{1,4})C|(?P<join>J)|W(?P<win>[abc?]{0,4})E|(?P<end>E)")
    expected: list[tuple[str, int, str]] = []
    at = 0
    while match := well_formed.match(text, at):
        at = match.end()
        if match["spawn"]:
            expected.append(("spawn", match.start(), match["spawn"]))
        if match["join"]:
            expected.append(("join", match.start(), ""))
        if match["win"] is not None or match["end"]:
            expected.append(("end", match.start(), match["win"] or ""))
            break
        if match["join"]:
            break
    bound = bound_countdown()
    signals = signals_of(bound.watcher(), tokens)
    has_stopped = bool(expected) and expected[-1][0] in ("end", "join")
    if has_stopped or re.fullmatch(r"([OW][abc?]{0,4})?", text[at:]):
        assert summary(signals) == expected
    else:
        assert summary(signals[:-1]) == expected
        assert signals[-1].kind == "malformed"
    assert bound.watcher().feed(10**9) == ()


@given(streams)
def test_fuzz_ignoring_takes_what_is_malformed_for_plain_tokens(tokens: list[int]) -> None:
    """A message runs from its opening to the next close, or is given up with the fifth token."""
    text = as_letters(tokens)
    spawn, win = r"O(?:(?P<spawn>[^C]{0,4})C|[^C]{5})", r"W(?:(?P<win>[^E]{0,4})E|[^E]{5})"
    # What is left open at the end is never complete.
    pattern = re.compile(rf"{spawn}|{win}|(?P<join>J)|(?P<end>E)|[OW].*")
    expected = []
    for match in pattern.finditer(text):
        if match["spawn"]:
            expected.append(("spawn", match.start(), match["spawn"]))
        elif match["join"]:
            expected.append(("join", match.start(), ""))
        elif match["end"] or match["win"] is not None:
            expected.append(("end", match.start(), match["win"] or ""))
    bound = bound_countdown(on_malformed="ignore")
    watcher = bound.watcher()
    assert summary(signal for token in tokens for signal in watcher.feed(token)) == expected
    first_end = next((found for kind, _, found in expected if kind == "end"), "")
    assert as_letters(bound.returned(tokens)) == first_end


@given(streams, st.sampled_from(["end", "ignore"]), st.sampled_from([None, 1, 4]))
def test_fuzz_nothing_happens_before_it_is_foreseen(tokens: list[int], on_malformed: str, longest: int | None) -> None:
    """Whenever it is asked: no signal at so many tokens but at those that it named."""
    watcher = bound_countdown(on_malformed=on_malformed, longest_message=longest).watcher()
    assert isinstance(watcher, ForeseeingWatcher)
    foreseen: list[Foresight] = []
    happened: list[bool] = []
    for token in tokens:
        foresight = watcher.foresee()
        assert foresight is not None
        foreseen.append(foresight)
        happened.append(bool(watcher.feed(token)))
    for start, foresight in enumerate(foreseen):
        for token, signals in list(zip(tokens, happened, strict=True))[start : start + foresight.quiet]:
            if token in foresight.tokens:
                break
            assert not signals


@pytest.mark.parametrize("opening", ["<spawn>", "<win>"])
def test_a_message_that_gets_too_long_is_foreseen_to_the_token(opening: str) -> None:
    watcher = bound_countdown().watcher()
    assert isinstance(watcher, ForeseeingWatcher)
    left = []
    for token in spell(f"a {opening} a b c a"):
        assert watcher.feed(token) == ()
        foresight = watcher.foresee()
        assert foresight is not None
        left.append(foresight.quiet)
    assert left[1:] == [4, 3, 2, 1, 0]
    assert [signal.kind for signal in watcher.feed(spell("b")[0])] == ["malformed"]


def test_without_a_longest_message_tags_alone_matter() -> None:
    watcher = bound_countdown(longest_message=None).watcher()
    assert isinstance(watcher, ForeseeingWatcher)
    for token in spell("a <spawn> a b c a"):
        watcher.feed(token)
        foresight = watcher.foresee()
        assert foresight is not None
        assert foresight.quiet > 10**6
        assert foresight.tokens == set(spell("<spawn> </spawn> <join> <win> <end> <message> </message>"))
