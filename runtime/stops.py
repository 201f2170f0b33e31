"""Stop strings: ending a generate where its text, not a certain token, says so."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.commands import Signal
from runtime.model.tokenizer import IncrementalDecoder, Tokenizer


class StopStrings:
    """A watcher that stops a thread with the token that completes one of some strings in its text."""

    __slots__ = ("_decoder", "_longest", "_strings", "_tail")

    def __init__(self, tokenizer: Tokenizer, strings: Sequence[str]) -> None:
        self._decoder = IncrementalDecoder(tokenizer)
        self._strings = tuple(strings)
        self._longest = max(map(len, self._strings))
        self._tail = ""

    def feed(self, token: int) -> tuple[Signal, ...]:
        text = self._tail + self._decoder.feed(token)
        self._tail = text[-self._longest :]
        return (Signal("stop", stops=True),) if any(string in text for string in self._strings) else ()


def text_before(text: str, strings: Sequence[str]) -> str:
    """The part of a text before the first of some strings; all of it where there is none."""
    found = [position for position in map(text.find, strings) if position >= 0]
    return text[: min(found)] if found else text
