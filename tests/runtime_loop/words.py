"""A tokenizer of one token a word, and a protocol whose tags are words."""

from __future__ import annotations

import tokenizers
from tokenizers import models, pre_tokenizers

from runtime.model.tokenizer import Tokenizer
from runtime.protocol import BoundProtocol, TagProtocol

WORDS = (
    *map(str, range(100)),
    *"abcdefghijklmnopqrstuvwxyz",
    *("<spawn>", "</spawn>", "<join>", "<return>", "<end>", "<message>", "</message>", "<block>", "</block>"),
    *("<send>", "</send>", "<receive>", "root", "parent", "board", ":", "!"),
)

PROTOCOL = TagProtocol(
    spawn_open="<spawn>",
    spawn_close="</spawn>",
    join="<join>",
    return_open="<return>",
    end=("<end>",),
    forbidden=("<message>",),
    delivered="<message> {message} </message>",
)


def word_tokenizer() -> Tokenizer:
    """One token a word: numbers below 100, letters and tags."""
    inner = tokenizers.Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(inner)


def bound_protocol(**changes: object) -> BoundProtocol:
    fields = {name: getattr(PROTOCOL, name) for name in PROTOCOL.__struct_fields__}
    return BoundProtocol(TagProtocol(**{**fields, **changes}), word_tokenizer())


def ids(text: str) -> tuple[int, ...]:
    return tuple(WORDS.index(word) for word in text.split())
