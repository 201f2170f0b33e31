"""Tokenizers of words and of pieces, Countdown's protocol over them, and every signal of a stream."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Library

from runtime.link.commands import Signal, Watcher
from runtime.model.tokenizer import Tokenizer
from runtime.protocol import BoundProtocol, TagProtocol

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
