"""Stopping at strings, and running two watchers at once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from runtime.link.commands import ForeseeingWatcher, Foresight, Signal, Watcher
from runtime.model.incremental import IncrementalDecoder
from runtime.model.tokenizer import Tokenizer


class StopStrings:
    """Stops with a signal "stop" at the token that completes any of the strings in the text that a context gains.

    The signal's tokens are those that hold the match. Raises `ValueError` for an empty string.
    """

    def __init__(self, tokenizer: Tokenizer, strings: Sequence[str], context: Sequence[int] = ()) -> None:
        if not strings or "" in strings:
            raise ValueError(f"stop is {list(strings)!r}; give one or more strings, none of them empty.")
        self._strings = tuple(strings)
        self._decoder = IncrementalDecoder(tokenizer, context)
        self._tokens: list[int] = []
        self._text = ""
        """What is settled."""
        self._searched = 0
        """No match begins before this offset."""
        self._reach = max(map(len, strings)) - 1
        self._piece_offset: list[int] = []
        self._piece_token: list[int] = []
        self._unread = 0
        """Number of the first token whose text is not settled yet."""

    def feed(self, token: int) -> tuple[Signal, ...]:
        self._tokens.append(token)
        piece = self._decoder.feed(token)
        if piece:
            self._piece_offset.append(len(self._text))
            self._piece_token.append(self._unread)
            self._unread = len(self._tokens) - self._decoder.is_open
            self._text += piece
        # Where a match is complete, no later token comes that could change it.
        fresh = self._text[self._searched :] + self._decoder.pending[max(0, self._searched - len(self._text)) :]
        found = [(begin + len(string), begin) for string in self._strings if (begin := fresh.find(string)) >= 0]
        if not found:
            self._searched = max(self._searched, len(self._text) - self._reach)
            return ()
        begin = self._searched + min(found)[1]
        # What has stopped once does not stop again at the same place.
        self._searched += len(fresh)
        return (Signal("stop", tuple(self._tokens[self._token_at(begin) :]), self._token_at(begin), stops=True),)

    def _token_at(self, offset: int) -> int:
        if offset >= len(self._text):
            return self._unread
        return self._piece_token[bisect_right(self._piece_offset, offset) - 1]


def begins_stop(text: str, strings: Sequence[str]) -> int:
    """Where in a text the first of some strings begins, or may begin once more text follows; its end if nowhere."""
    longest = max(map(len, strings), default=1)
    whole = [begin for begin in map(text.find, strings) if begin >= 0]
    for begin in range(max(0, len(text) - longest + 1), len(text)):
        if any(string.startswith(text[begin:]) for string in strings):
            whole.append(begin)
            break
    return min(whole, default=len(text))


class Both:
    """Feeds two watchers. Where both stop at one token, the first one's signals count."""

    def __init__(self, first: Watcher, second: Watcher) -> None:
        self._first = first
        self._second = second

    def feed(self, token: int) -> tuple[Signal, ...]:
        first, second = self._first.feed(token), self._second.feed(token)
        return first if first and first[-1].stops else first + second

    def foresee(self) -> Foresight | None:
        """What both know."""
        if not (isinstance(self._first, ForeseeingWatcher) and isinstance(self._second, ForeseeingWatcher)):
            return None
        first, second = self._first.foresee(), self._second.foresee()
        if first is None or second is None:
            return None
        return Foresight(first.tokens | second.tokens, min(first.quiet, second.quiet))


def text_before(text: str, strings: Sequence[str]) -> str:
    """The part of a text before the first of some strings; all of it where there is none."""
    found = [position for position in map(text.find, strings) if position >= 0]
    return text[: min(found)] if found else text
