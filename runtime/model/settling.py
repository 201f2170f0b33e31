"""How much of a decoded text stays as it is, whatever tokens follow: a property of the tokenizer's decoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are not, or not yet, a character."""

_CLEANED = " .?!,'ntmsver"
"""Characters of what transformers' clean-up of spaces looks for."""

_FUSING = ("ByteLevel", "Fuse")
_ON_ANY_TEXT = ("ByteLevel", "Fuse", "Strip")


class Settling(msgspec.Struct, frozen=True, kw_only=True):
    """Which end of a decoded text may still change."""

    byte_tokens: frozenset[int] = frozenset()
    """Tokens of one byte each, outside byte-level vocabularies. One byte that belongs to no character spoils the whole
    run of them that it stands in, so that such a run is not settled before it ends."""
    joins_bytes: bool = False
    """Byte-level: the last character may lack bytes that the next token brings."""
    cleans_up: bool = False
    """Whether spaces before punctuation are taken out of the whole text."""
    is_local: bool = True
    """False where a decoder's step may change any part of the whole text; then nothing is settled before its end."""

    def settled(self, text: str) -> int:
        """Characters of a text that no later token changes, where its last token is none of `byte_tokens`."""
        if not self.is_local:
            return 0
        if self.joins_bytes and text.endswith(REPLACEMENT):
            text = text[:-1]
        return len(text.rstrip(_CLEANED)) if self.cleans_up else len(text)


def settling_of(decoder: Mapping[str, Any] | None, vocabulary: Mapping[str, int], *, cleans_up: bool) -> Settling:
    """What holds for a decoder, as tokenizer.json writes it, over a vocabulary."""
    steps = list(_steps(decoder))
    kinds = [step["type"] for step in steps]
    return Settling(
        byte_tokens=frozenset(
            token for name, token in vocabulary.items() if "ByteFallback" in kinds and _is_byte(name)
        ),
        joins_bytes="ByteLevel" in kinds,
        cleans_up=cleans_up,
        is_local=_is_local(steps),
    )


def _steps(decoder: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if decoder is None:
        return
    if decoder["type"] != "Sequence":
        yield decoder
        return
    for step in decoder["decoders"]:
        yield from _steps(step)


def _is_local(steps: list[Mapping[str, Any]]) -> bool:
    """Whether every step works on single tokens, or character by character."""
    is_fused = False
    for step in steps:
        kind = step["type"]
        if is_fused and kind not in _ON_ANY_TEXT and not (kind == "Replace" and _is_character(step["pattern"])):
            return False
        is_fused |= kind in _FUSING
    return True


def _is_character(pattern: Mapping[str, str]) -> bool:
    return len(pattern.get("String", "")) == 1


def _is_byte(name: str) -> bool:
    return len(name) == 6 and name.startswith("<0x") and name.endswith(">") and _is_hexadecimal(name[3:5])


def _is_hexadecimal(digits: str) -> bool:
    return all(digit in "0123456789abcdefABCDEF" for digit in digits)
