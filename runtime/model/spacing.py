"""Tokenizers that put a space before a text, and their like that put none: for text in the middle of another."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import tokenizers

Step = dict[str, Any]
"""A normalizer or pre-tokenizer as tokenizer.json writes it."""


class Continuation:
    """Cuts text that goes on after other text into parts, each with the tokenizer that puts no space before it."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self._inner = inner
        content = msgspec.json.decode(inner.to_str(), type=dict[str, Any])
        changed = {
            **content,
            "normalizer": _normalizer(content["normalizer"]),
            "pre_tokenizer": _pre_tokenizer(content["pre_tokenizer"]),
        }
        self._bare = inner
        if changed != content:
            self._bare = tokenizers.Tokenizer.from_str(msgspec.json.encode(changed).decode())
            self._bare.encode_special_tokens = inner.encode_special_tokens
        self._marks_words = _marks_words(content["pre_tokenizer"])

    def parts(self, text: str) -> list[tuple[tokenizers.Tokenizer, str]]:
        """The text's parts in order; joined, they are the text."""
        if self._bare is self._inner or not self._marks_words:
            return [(self._bare, text)]
        # Words are cut apart first, and each is marked; only the one that the text begins with may be half a word.
        first = re.match(r"\S*", text)
        end = 0 if first is None else first.end()
        return [(self._bare, text[:end]), (self._inner, text[end:])]


def _normalizer(step: Step | None) -> Step | None:
    if step is None or step["type"] == "Prepend":
        return None
    if step["type"] != "Sequence":
        return step
    return {**step, "normalizers": [kept for inner in step["normalizers"] if (kept := _normalizer(inner)) is not None]}


def _pre_tokenizer(step: Step | None) -> Step | None:
    if step is None:
        return None
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    if step["type"] == "ByteLevel":
        return {**step, "add_prefix_space": False}
    if step["type"] == "Sequence":
        return {**step, "pretokenizers": [_pre_tokenizer(inner) for inner in step["pretokenizers"]]}
    return step


def _marks_words(step: Step | None) -> bool:
    """Whether spaces are put before what an earlier step has cut."""
    if step is None or step["type"] != "Sequence":
        return False
    return any(
        inner.get("prepend_scheme") == "always" or inner.get("add_prefix_space") is True
        for inner in step["pretokenizers"][1:]
    )
