"""Protocols whose tags are text, whatever tokens it comes in."""

from __future__ import annotations

from itertools import pairwise

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from runtime.link.commands import Signal
from runtime.model.tokenizer import Tokenizer
from runtime.protocol import BoundProtocol, TagProtocol
from tests.protocol.declared import BLOCKS, TEXT
from tests.protocol.watching import (
    COUNTDOWN,
    WORDS,
    ids_of,
    piece_tokenizer,
    signals_of,
    spell,
    word_tokenizer,
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
