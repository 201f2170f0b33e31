"""The declarative protocol: Countdown's on token ids, APR's on text, and whatever a model may emit instead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Library

from runtime.errors import PromptError, ProtocolError
from runtime.link.commands import ForeseeingWatcher, Foresight, Signal, Watcher
from runtime.model.tokenizer import Tokenizer
from runtime.protocol import APR, Both, BoundProtocol, Definition, StopStrings, TagProtocol, apr_protocol

COUNTDOWN = TagProtocol(
    spawn_open="<spawn>",
    spawn_close="</spawn>",
    join="<join>",
    return_open="<win>",
    end=("<end>",),
    forbidden=("<message>", "</message>"),
    delivered="<message>{message}</message>",
    most_messages=4,
    longest_message=4,
)

WORDS = ("<spawn>", "</spawn>", "<join>", "<win>", "<end>", "<message>", "</message>", "a", "b", "c", "<unknown>")
LETTERS = "OCJWEMmabc?"
"""One letter a word, so that regular expressions can read a stream of words."""


def word_tokenizer(words: Sequence[str] = WORDS) -> Tokenizer:
    library = Library(models.WordLevel({word: token for token, word in enumerate(words)}, unk_token="<unknown>"))
    tags = "|".join(re.escape(word) for word in words if word.startswith("<"))
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(tags), "isolated")]
    )
    return Tokenizer(library)


def piece_tokenizer(pieces: Iterable[str], specials: Sequence[str] = ()) -> Tokenizer:
    """One token a character when it encodes; `pieces` are further tokens, which only a model would emit."""
    characters = sorted({character for piece in pieces for character in piece} | set(map(chr, range(32, 127))) | {"\n"})
    names = dict.fromkeys([*characters, *pieces])
    library = Library(models.BPE({name: token for token, name in enumerate(names)}, []))
    library.decoder = decoders.Fuse()
    library.add_special_tokens(list(specials))
    return Tokenizer(library)


def ids_of(tokenizer: Tokenizer, pieces: Iterable[str]) -> list[int]:
    tokens = [tokenizer.token_to_id(piece) for piece in pieces]
    assert None not in tokens
    return [token for token in tokens if token is not None]


def signals_of(watcher: Watcher, tokens: Iterable[int]) -> list[Signal]:
    """Every signal up to the first that stops."""
    signals: list[Signal] = []
    for token in tokens:
        signals += watcher.feed(token)
        assert not any(signal.stops for signal in signals[:-1])
        if signals and signals[-1].stops:
            break
    return signals


def spell(text: str, words: Sequence[str] = WORDS) -> list[int]:
    return [words.index(word) for word in text.split()]


def bound_countdown(**changes: Any) -> BoundProtocol:
    return BoundProtocol(msgspec.structs.replace(COUNTDOWN, **changes), word_tokenizer())


# ---- on token ids ----------------------------------------------------------------------------------------------------


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


# ---- on text ---------------------------------------------------------------------------------------------------------

TEXT = TagProtocol(
    spawn_open="<sp>",
    spawn_close="</sp>",
    join="<wait>",
    return_open="[[",
    return_close="]]",
    end=("<stop>",),
    forbidden=("<got>",),
    delivered="<got>{index}:{message}</got>\n",
    joined="\n{children}",
)

BLOCKS = TagProtocol(
    block_open="<par>",
    block_close="</par>",
    cuts_block=True,
    spawn_open="* ",
    spawn_close="\n",
    return_pattern=r"(?s)answer: (?P<message>.*)",
    end=("<stop>",),
    delivered="- {message}\n",
    joined="<res>\n{children}</res>",
)

fragments = st.lists(
    st.sampled_from(
        [
            *TEXT.tags,
            *BLOCKS.tags,
            "<s",
            "</",
            "p>",
            "[",
            "]",
            "answer: ",
            " ",
            "x",
            "yz ",
            "<sp>q1</sp>",
            "[[found]]",
            "<par>\n* one\n* two\n</par>",
        ]
    ),
    max_size=14,
).map("".join)


@given(st.sampled_from([TEXT, BLOCKS]), st.sampled_from(["end", "ignore"]), fragments, st.data())
def test_fuzz_text_in_any_pieces_gives_the_same_signals(
    declared: TagProtocol, on_malformed: str, text: str, data: st.DataObject
) -> None:
    protocol = msgspec.structs.replace(declared, on_malformed=on_malformed)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=len(text), unique=True).map(sorted))
    borders = sorted({0, *cuts, len(text)})
    pieces = [text[begin:end] for begin, end in pairwise(borders)]
    tokenizer = piece_tokenizer([*pieces, text] if text else [])
    bound = BoundProtocol(protocol, tokenizer)
    assert not bound.on_ids

    whole = signals_of(bound.watcher(), tokenizer.encode(text))
    chunked = signals_of(bound.watcher(), ids_of(tokenizer, pieces))
    at_once = signals_of(bound.watcher(), ids_of(tokenizer, [text] if text else []))

    def essence(signals: list[Signal]) -> list[tuple[str, str, bool]]:
        is_cut = [signal.keep is not None for signal in signals]
        return [
            (signal.kind, "" if cut else tokenizer.decode(signal.tokens), signal.stops)
            for signal, cut in zip(signals, is_cut, strict=True)
        ]

    assert essence(chunked) == essence(whole) == essence(at_once)
    for by_character, by_piece in zip(whole, chunked, strict=True):
        # A start is the piece that holds the character; what a cut takes too much is put back.
        assert borders[by_piece.start] <= by_character.start < borders[by_piece.start + 1]
        assert by_piece.reason == by_character.reason
        if by_character.keep is not None:
            assert by_piece.keep is not None
            assert by_character.tokens == ()
            kept = text[: borders[by_piece.keep]] + tokenizer.decode(by_piece.tokens)
            assert kept == text[: by_character.keep]
    returned = {
        bound.returned(tokens)
        for tokens in (tokenizer.encode(text), ids_of(tokenizer, pieces), ids_of(tokenizer, [text] if text else []))
    }
    assert len(returned) == 1


def text_signals(bound: BoundProtocol, tokenizer: Tokenizer, text: str) -> list[tuple[str, str]]:
    signals = signals_of(bound.watcher(), tokenizer.encode(text))
    return [(signal.kind, tokenizer.decode(signal.tokens)) for signal in signals]


def test_tags_of_several_tokens() -> None:
    tokenizer = piece_tokenizer([])
    bound = BoundProtocol(TEXT, tokenizer)
    assert text_signals(bound, tokenizer, "x <sp> try 3 </sp>\n<sp>4</sp> <wait>") == [
        ("spawn", "try 3"),
        ("spawn", "4"),
        ("join", ""),
    ]
    assert text_signals(bound, tokenizer, "[[a]] then [[ b ]]<stop>") == [("end", "b")]
    assert bound.returned(tokenizer.encode("[[a]] and no end")) == tuple(tokenizer.encode("a"))
    delivery = bound.delivery([tuple(tokenizer.encode("p")), (), tuple(tokenizer.encode("q"))])
    assert tokenizer.decode(delivery) == "\n<got>0:p</got>\n<got>2:q</got>\n"
    exact = BoundProtocol(msgspec.structs.replace(TEXT, strip=False), tokenizer)
    assert text_signals(exact, tokenizer, "<sp> 3 </sp>") == [("spawn", " 3 ")]


def test_one_token_may_complete_several_spawns() -> None:
    tokenizer = piece_tokenizer(["<sp>1</sp><sp>2</sp><sp>3"])
    watcher = BoundProtocol(TEXT, tokenizer).watcher()
    (token,) = ids_of(tokenizer, ["<sp>1</sp><sp>2</sp><sp>3"])
    assert [tokenizer.decode(signal.tokens) for signal in watcher.feed(token)] == ["1", "2"]
    rest = [signal for token in tokenizer.encode("4</sp>") for signal in watcher.feed(token)]
    assert [(tokenizer.decode(signal.tokens), signal.start) for signal in rest] == [("34", 0)]


def test_messages_too_long_on_text() -> None:
    tokenizer = piece_tokenizer([])
    bound = BoundProtocol(msgspec.structs.replace(TEXT, longest_message=3), tokenizer)
    assert text_signals(bound, tokenizer, "<sp>123</sp>") == [("spawn", "123")]
    assert [kind for kind, _ in text_signals(bound, tokenizer, "<sp>1234</sp>")] == ["malformed"]
    assert [kind for kind, _ in text_signals(bound, tokenizer, "[[1234]]")] == ["malformed"]
    ignoring = BoundProtocol(msgspec.structs.replace(bound.protocol, on_malformed="ignore"), tokenizer)
    assert text_signals(ignoring, tokenizer, "<sp>1234</sp>[[1234]]<sp>5</sp><stop>") == [("spawn", "5"), ("end", "")]
    pattern = BoundProtocol(msgspec.structs.replace(BLOCKS, longest_message=3, on_malformed="ignore"), tokenizer)
    assert text_signals(pattern, tokenizer, "answer: 1234<stop>") == [("end", "")]


def test_special_tokens_among_tags_of_text() -> None:
    tokenizer = piece_tokenizer([], specials=["<stop>", "<wait>"])
    bound = BoundProtocol(TEXT, tokenizer)
    assert not bound.on_ids
    stop, wait = ids_of(tokenizer, ["<stop>", "<wait>"])
    letters = tokenizer.encode("<sp>7</s")
    signals = signals_of(bound.watcher(), [*letters, *tokenizer.encode("p>"), wait])
    assert [(signal.kind, signal.start) for signal in signals] == [("spawn", 0), ("join", 10)]
    # The halves of a tag around another tag are no tag.
    signals = signals_of(bound.watcher(), [*tokenizer.encode("<sp"), stop])
    assert signals == [Signal("end", start=3, stops=True)]
    ignoring = BoundProtocol(msgspec.structs.replace(TEXT, on_malformed="ignore"), tokenizer)
    signals = signals_of(ignoring.watcher(), [*tokenizer.encode("<sp>1"), wait, *tokenizer.encode("2</sp>")])
    assert [tokenizer.decode(signal.tokens) for signal in signals] == ["1<wait>2"]


def test_characters_spread_over_tokens() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Library(models.BPE({name: token for token, name in enumerate(alphabet)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    tokenizer = Tokenizer(library)
    bound = BoundProtocol(TEXT, tokenizer)
    tokens = tokenizer.encode("é<sp>→ 🧵</sp>")
    signals = signals_of(bound.watcher(), tokens)
    assert [(tokenizer.decode(signal.tokens), signal.start) for signal in signals] == [("→ 🧵", 2)]
    # Bytes that are no text neither hang nor hide the tags after them.
    broken = [tokens[0]] * 40 + tokenizer.encode("<sp>x</sp>")
    assert [tokenizer.decode(signal.tokens) for signal in signals_of(bound.watcher(), broken)] == ["x"]


def test_messages_that_the_tokenizer_cannot_write_are_malformed() -> None:
    words = (*WORDS, "<open", ">")
    protocol = msgspec.structs.replace(
        COUNTDOWN, forbidden=(), message_pattern=r"(?s).*", child="zebra {message}", on_malformed="end"
    )
    bound = BoundProtocol(protocol, word_tokenizer(words))
    assert not bound.on_ids
    signals = signals_of(bound.watcher(), spell("<spawn> a <unknown> </spawn>", words))
    assert [signal.kind for signal in signals] == ["malformed"]
    assert "vocabulary" in signals[0].reason


# ---- APR -------------------------------------------------------------------------------------------------------------

ROOT = "Moving to Node #0\nCurrent State: 39:[51, 49, 36, 25], Operations: []"

BEFORE_CALL = """
Exploring Operation: 51-49=2, Resulting Numbers: [36, 25, 2]
Generated Node #0,0: 39:[36, 25, 2] Operation: 51-49=2
Exploring Operation: 36-25=11, Resulting Numbers: [51, 49, 11]
Generated Node #0,1: 39:[51, 49, 11] Operation: 36-25=11
Moving to Node #0,0
Current State: 39:[36, 25, 2], Operations: ['51-49=2']
Exploring Operation: 25*2=50, Resulting Numbers: [36, 50]
Generated Node #0,0,0: 39:[36, 50] Operation: 25*2=50
Exploring Operation: 36-25=11, Resulting Numbers: [2, 11]
Generated Node #0,0,1: 39:[2, 11] Operation: 36-25=11
"""

CALL = """<Calling Sub Searches>
<Start Sub Search 0 at level 1> Moving to Node #0,0,1
<Start Sub Search 1 at level 1> Moving to Node #0,1
<Start Sub Search 2 at level 1> Moving to Node #0
<End Calling Sub Searches>"""

CHILDREN = [
    "Moving to Node #0,0,1\nCurrent State: 39:[2, 11], Operations: ['51-49=2', '36-25=11']",
    "Moving to Node #0,1\nCurrent State: 39:[51, 49, 11], Operations: ['36-25=11']",
    "Moving to Node #0\nCurrent State: 39:[51, 49, 36, 25], Operations: []",
]

PATH = """Moving to Node #0,1
Current State: 39:[51, 49, 11], Operations: ['36-25=11']
Exploring Operation: 51-11=40, Resulting Numbers: [49, 40]
39,39 equal: Goal Reached"""

CHILD_OUTPUT = f"""
Exploring Operation: 51-11=40, Resulting Numbers: [49, 40]
39,39 equal: Goal Reached
{PATH}
"""

AFTER_CALL = f"""<Sub Searches>
<No Solution in Sub Search 0 at level 1 at Node #0,0,1>
<Goal Reached in Sub Search 1 at level 1 at Node #0,1>
{PATH}
<No Solution in Sub Search 2 at level 1 at Node #0>
<End Sub Searches>
"""


@pytest.fixture(scope="module")
def apr_tokenizer() -> Tokenizer:
    # As in a learned vocabulary, tokens span words and lines: the block's first bracket shares a token with what
    # stands before it.
    return piece_tokenizer(["\n<", "Node #0", "<Start Sub Search ", ">\n<", " Searches>\n", "Op"], ["<s>", "</s>"])


def emit(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of a text, the longest first."""
    tokens = []
    for piece in re.findall(r"\n<(?!E)|>\n<|Node #0|<Start Sub Search | Searches>\n|Op|.", text, re.DOTALL):
        tokens += ids_of(tokenizer, [piece])
    assert tokenizer.decode(tokens) == text
    return tokens


def test_apr_children_are_prompted_with_the_nodes_named(apr_tokenizer: Tokenizer) -> None:
    bound = BoundProtocol(APR, apr_tokenizer)
    assert not bound.on_ids
    prompt = bound.prompt(ROOT)
    assert apr_tokenizer.decode(prompt) == "<s>" + ROOT
    emitted = emit(apr_tokenizer, BEFORE_CALL + CALL)
    signals = signals_of(bound.watcher(prompt), emitted)
    assert [signal.kind for signal in signals] == ["spawn", "spawn", "spawn", "join"]
    assert [apr_tokenizer.decode(signal.tokens) for signal in signals[:3]] == ["<s>" + child for child in CHILDREN]
    assert signals[0].tokens[0] == apr_tokenizer.token_to_id("<s>")

    join = signals[-1]
    assert join.keep is not None
    kept = apr_tokenizer.decode(emitted[: join.keep])
    assert kept + "\n" == BEFORE_CALL  # the line's end shares a token with the block
    assert apr_tokenizer.decode(join.tokens) == "\n"
    path = tuple(apr_tokenizer.encode(PATH))
    delivery = bound.delivery([(), path, ()], [signal.tokens for signal in signals[:3]])
    assert apr_tokenizer.decode([*emitted[: join.keep], *join.tokens, *delivery]) == BEFORE_CALL + AFTER_CALL


def test_apr_spawns_start_at_the_end_of_their_line(apr_tokenizer: Tokenizer) -> None:
    bound = BoundProtocol(APR, apr_tokenizer)
    watcher = bound.watcher(bound.prompt(ROOT))
    first_line = (BEFORE_CALL + CALL).index("\n<Start Sub Search 1") + 1
    signals = [
        signal for token in apr_tokenizer.encode((BEFORE_CALL + CALL)[:first_line]) for signal in watcher.feed(token)
    ]
    assert [signal.kind for signal in signals] == ["spawn"]


def test_apr_later_calls_know_what_was_delivered(apr_tokenizer: Tokenizer) -> None:
    bound = BoundProtocol(APR, apr_tokenizer)
    context = [*bound.prompt(ROOT), *apr_tokenizer.encode(BEFORE_CALL + AFTER_CALL)]
    call = "<Calling Sub Searches>\n<Start Sub Search 0 at level 1> Moving to Node #0,0,0\n<End Calling Sub Searches>"
    signals = signals_of(bound.watcher(context), apr_tokenizer.encode(call))
    assert apr_tokenizer.decode(signals[0].tokens) == (
        "<s>Moving to Node #0,0,0\nCurrent State: 39:[36, 50], Operations: ['51-49=2', '25*2=50']"
    )
    assert (signals[1].keep, signals[1].tokens) == (0, ())


def test_apr_children_return_the_path_they_repeat(apr_tokenizer: Tokenizer) -> None:
    bound = BoundProtocol(APR, apr_tokenizer)
    (eos,) = ids_of(apr_tokenizer, ["</s>"])
    found = [*emit(apr_tokenizer, CHILD_OUTPUT), eos]
    signals = signals_of(bound.watcher(), found)
    assert [(signal.kind, apr_tokenizer.decode(signal.tokens)) for signal in signals] == [("end", PATH)]
    assert apr_tokenizer.decode(bound.returned(found)) == PATH
    # Also where the thread was stopped before its end token.
    assert apr_tokenizer.decode(bound.returned(found[:-1])) == PATH
    for nothing in ("\nNo solution found.\n", "\n39,39 equal: Goal Reached\n"):
        signals = signals_of(bound.watcher(), [*apr_tokenizer.encode(nothing), eos])
        assert [(signal.kind, signal.tokens) for signal in signals] == [("end", ())]
        assert bound.returned(apr_tokenizer.encode(nothing)) == ()


def test_apr_conditions_roots_on_the_budget(apr_tokenizer: Tokenizer) -> None:
    bound = BoundProtocol(apr_protocol(budget=10, bos=""), apr_tokenizer)
    prompt = bound.prompt(ROOT)
    assert apr_tokenizer.decode(prompt) == "Sub Call Budget: 10 " + ROOT
    spawn = signals_of(bound.watcher(prompt), apr_tokenizer.encode(BEFORE_CALL + CALL))[2]
    assert apr_tokenizer.decode(spawn.tokens) == ROOT
    with pytest.raises(ProtocolError, match="budget is -1"):
        apr_protocol(budget=-1)


@pytest.mark.parametrize(
    ("emitted", "reason"),
    [
        (
            "<Calling Sub Searches>\n<Start Sub Search 0 at level 1> Moving to Node #0,7\n",
            "'0,7', which was not defined",
        ),
        ("<Calling Sub Searches>\n<Start Sub Search 0 at level 1> Moving on\n", "does not match"),
        ("<Calling Sub Searches>\n<Start Sub Search\n", "message is empty"),
        ("<Start Sub Search 0", "cannot stand outside any message"),
        ("<End Calling Sub Searches>", "cannot stand outside any message"),
        ("<Calling Sub Searches>\n<Calling Sub Searches>", "cannot stand inside a spawn block"),
        ("<Sub Searches>", "cannot stand outside any message"),
    ],
)
def test_apr_malformed_calls(apr_tokenizer: Tokenizer, emitted: str, reason: str) -> None:
    bound = BoundProtocol(APR, apr_tokenizer)
    signals = signals_of(bound.watcher(bound.prompt(ROOT)), apr_tokenizer.encode(BEFORE_CALL + emitted))
    assert [signal.kind for signal in signals] == ["malformed"]
    assert reason in signals[0].reason
    ignoring = BoundProtocol(apr_protocol(on_malformed="ignore"), apr_tokenizer)
    emitted += "\n<End Calling Sub Searches>" if emitted.startswith("<Calling") else ""
    kinds = [s.kind for s in signals_of(ignoring.watcher(ignoring.prompt(ROOT)), apr_tokenizer.encode(emitted))]
    assert kinds == (["join"] if emitted.startswith("<Calling") else [])


def test_apr_deliveries_need_the_childrens_prompts(apr_tokenizer: Tokenizer) -> None:
    with pytest.raises(ProtocolError, match="2 messages were returned, but there are 0 prompts"):
        BoundProtocol(APR, apr_tokenizer).delivery([(), ()])


# ---- declarations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [COUNTDOWN, TEXT, BLOCKS, APR])
def test_protocols_travel_as_json(protocol: TagProtocol) -> None:
    assert msgspec.json.decode(msgspec.json.encode(protocol), type=TagProtocol) == protocol
    assert msgspec.convert(msgspec.to_builtins(protocol), TagProtocol) == protocol


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spawn_close": ""}, "spawn_close is empty"),
        ({"join": ""}, "join is empty"),
        ({"end": ("",)}, "an empty one"),
        ({"end": ("<end>", "<win>")}, "contained in"),
        ({"forbidden": ("x<end>y",)}, "'<end>' is contained in tag 'x<end>y'"),
        ({"block_open": "<block>"}, "belong together"),
        ({"cuts_block": True}, "cuts_block needs blocks"),
        ({"return_open": ""}, "either return_open or return_pattern"),
        ({"return_pattern": "(?P<message>.*)"}, "either return_open or return_pattern"),
        ({"return_open": "", "return_pattern": ".*"}, r"lacks the group \(\?P<message>"),
        ({"return_open": "", "return_pattern": "("}, "no regular expression"),
        ({"end": ()}, "no end"),
        ({"child": "{text}"}, r"uses \{text\}; fields that can be filled here: \{message\}"),
        ({"child": "{message!r}"}, "uses"),
        ({"child": "{"}, "is no template"),
        ({"delivered": "<message>"}, r"lacks \{message\}"),
        ({"joined": ""}, r"lacks \{children\}"),
        ({"prompt": "x"}, r"lacks \{prompt\}"),
        ({"definitions": (Definition(pattern="(?P<name>x)"),)}, "need a message_pattern"),
        ({"longest_message": 0}, "longest_message is 0"),
        ({"most_messages": 0}, "most_messages is 0"),
    ],
)
def test_declarations_that_contradict_themselves(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        msgspec.structs.replace(COUNTDOWN, **changes)


def test_definitions_need_their_groups() -> None:
    with pytest.raises(ProtocolError, match=r"lacks the group \(\?P<name>"):
        Definition(pattern="x")
    with pytest.raises(ProtocolError, match=r"lacks the group \(\?P<parent>"):
        Definition(pattern="(?P<name>x)", appends={"path": "x"})
    with pytest.raises(ProtocolError, match=r"uses \{step\}"):
        Definition(pattern="(?P<name>x)(?P<parent>y)", appends={"path": "{step}"})


def test_misspelt_fields_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="spawn_opne"):
        msgspec.json.decode(b'{"spawn_opne": "<a>"}', type=TagProtocol)


def test_tags_and_texts_that_the_tokenizer_cannot_write() -> None:
    with pytest.raises(ProtocolError, match="cannot write '<fork>' of the protocol's tag"):
        bound_countdown(spawn_open="<fork>")
    with pytest.raises(ProtocolError, match="of the protocol's joined"):
        bound_countdown(joined="results {children}")
    lossy = Library(models.BPE({name: token for token, name in enumerate("<>jo")}, []))
    lossy.decoder = decoders.Fuse()
    with pytest.raises(ProtocolError, match="encoded and decoded it is"):
        BoundProtocol(COUNTDOWN, Tokenizer(lossy))
    with pytest.raises(PromptError):
        bound_countdown().prompt("")


# ---- stop strings and pairs of watchers ------------------------------------------------------------------------------


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
