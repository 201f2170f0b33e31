"""Declared regular expressions: what they match, what is refused, and that no text takes long."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import ProtocolError
from runtime.protocol.apr import APR
from runtime.protocol.patterns import LONGEST_OF_ALL, MOST_STEPS, Match, Pattern
from tests.damage import bounded

CATASTROPHIC = [r"(a+)+$", r"(\w+\s?)*:", r"(a|aa)+!", r"(.*)*\d", r"^(([a-z])+.)+[A-Z]([a-z])+$", r"(x+x+)+y"]

LAST_BUT_ONE = r"(?s)Goal Reached.(?P<message>(?:(?!Goal Reached).)*Goal Reached(?:(?!Goal Reached).)*)\Z"
"""What a thread of APR returns, as its definition says it: with lookaheads, in the syntax of `re`."""

SIMPLE = st.sampled_from(
    [r"(?P<name>\d+)", r"(?P<name>é|a)b?", r"(?P<name>)x", r"(?s)(?P<name>.).", r"\b(?P<name>\w+)"]
)


@pytest.mark.parametrize("source", CATASTROPHIC)
@pytest.mark.parametrize("text", ["a" * 40_000, "word " * 8_000, "x" * 40_000 + "!"])
def test_no_text_takes_long(source: str, text: str) -> None:
    pattern = Pattern(source)
    with bounded(seconds=10, size=2**30):
        pattern.search(text)
        pattern.match_whole(text)


def test_looking_for_all_matches_ends_where_each_would_read_on_to_the_end() -> None:
    pattern = Pattern(r"(?s)(?P<name>a)(.*\x00)?")
    with bounded(seconds=30, size=2**30), pytest.raises(ProtocolError, match="too long for the pattern"):
        for _ in pattern.find_all("a" * 100_000):
            pass


def test_a_text_beyond_the_bound_is_refused_before_it_is_read() -> None:
    pattern = Pattern(r"(?P<name>a{100})")
    text = "a" * (MOST_STEPS // 100)
    for search in (pattern.search, pattern.match_whole):
        with pytest.raises(ProtocolError, match=r"too long for the pattern '.*': it would take \d+ steps"):
            search(text)


@pytest.mark.parametrize(
    "source",
    [
        r"(a)\1",
        "(?P<a>x)(?P=a)",
        "(?=x)",
        "(?!x)",
        "(?<=x)y",
        "(?<!x)y",
        "(",
        "a{1001}",
        "(?P<a",
        "\ud800",
        r"\pL{100}",
    ],
)
def test_what_cannot_be_matched_within_bounds_is_refused_by_name(source: str) -> None:
    with pytest.raises(ProtocolError) as raised:
        Pattern(source)
    assert repr(source) in str(raised.value)
    assert str(raised.value).endswith(".")


@given(source=SIMPLE, text=st.text(alphabet="ab1é \nx", max_size=40))
def test_simple_patterns_match_as_in_python(source: str, text: str) -> None:
    ours, theirs = Pattern(source), re.compile(source, re.ASCII)

    def expected(match: re.Match[str]) -> Match:
        return Match(*match.span(), match.groupdict(""), {"name": match.span("name")})

    # An empty match may follow another match at once in `re`.
    found = [match for match in ours.find_all(text) if match.begin < match.end]
    assert found == [expected(match) for match in theirs.finditer(text) if match[0]]
    first, whole = theirs.search(text), theirs.fullmatch(text)
    assert ours.search(text) == (expected(first) if first else None)
    assert ours.match_whole(text) == (expected(whole) if whole else None)


@given(gaps=st.lists(st.integers(0, 3 * LONGEST_OF_ALL), max_size=8))
def test_all_matches_are_found_however_far_apart(gaps: list[int]) -> None:
    text = "".join("é" * gap + f"<{number}>" for number, gap in enumerate(gaps))
    found = [match.fields["name"] for match in Pattern(r"<(?P<name>\d+)>").find_all(text)]
    assert found == [str(number) for number in range(len(gaps))]


@given(pieces=st.lists(st.sampled_from(["Goal Reached\n", "Goal", " ", "\n", "x", "é"]), max_size=12))
def test_apr_returns_what_follows_the_last_but_one(pieces: list[str]) -> None:
    text = "".join(pieces)
    ours, theirs = Pattern(APR.return_pattern).search(text), re.search(LAST_BUT_ONE, text)
    assert (ours and ours.fields["message"]) == (theirs and theirs["message"])
