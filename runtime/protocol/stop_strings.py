"""Stopping at strings, and running two watchers at once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from runtime.commands import Signal, Watcher
from runtime.model.tokenizer import IncrementalDecoder, Tokenizer


class StopStrings:
    """Stops with a signal "stop" at the token that completes any of the strings in the decoded text.

    The signal's tokens are those that hold the match. Raises `ValueError` for an empty string.
    """

    def __init__(self, tokenizer: Tokenizer, strings: Sequence[str]) -> None:
        if not strings or "" in strings:
            raise ValueError(f"stop is {list(strings)!r}; give one or more strings, none of them empty")
        self._strings = tuple(strings)
        self._decoder = IncrementalDecoder(tokenizer)
        self._tokens: list[int] = []
        self._text = ""
        self._searched = 0
        self._reach = max(map(len, strings)) - 1
        self._piece_offset: list[int] = []
        self._piece_token: list[int] = []
        self._unread = 0
        """Number of the first token that has given no text yet."""

    def feed(self, token: int) -> tuple[Signal, ...]:
        self._tokens.append(token)
        piece = self._decoder.feed(token)
        if not piece:
            return ()
        self._piece_offset.append(len(self._text))
        self._piece_token.append(self._unread)
        self._unread = len(self._tokens)
        self._text += piece
        found = [
            (begin + len(string), begin)
            for string in self._strings
            if (begin := self._text.find(string, self._searched)) >= 0
        ]
        self._searched = max(self._searched, len(self._text) - self._reach)
        if not found:
            return ()
        _, begin = min(found)
        start = self._piece_token[bisect_right(self._piece_offset, begin) - 1]
        # What has stopped once does not stop again at the same place.
        self._searched = len(self._text)
        return (Signal("stop", tuple(self._tokens[start:]), start, stops=True),)


class Both:
    """Feeds two watchers. Where both stop at one token, the first one's signals count."""

    def __init__(self, first: Watcher, second: Watcher) -> None:
        self._first = first
        self._second = second

    def feed(self, token: int) -> tuple[Signal, ...]:
        first, second = self._first.feed(token), self._second.feed(token)
        return first if first and first[-1].stops else first + second
