"""What a context's text grows by: at once, and token by token."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from runtime.model.settling import REPLACEMENT

if TYPE_CHECKING:
    from runtime.model.tokenizer import Tokenizer

_WINDOW = 8
"""Tokens that are decoded together with a new one. A character has at most four bytes, so its first byte is in them."""

_LONGEST_CHARACTER = 4


def text_after(tokenizer: Tokenizer, context: Sequence[int], tokens: Sequence[int]) -> str:
    """What the text of `context` grows by when `tokens` follow it.

    Where they complete a character that the context begins, or spoil one, the growth begins with what becomes of it.
    """
    window = _window(tokenizer, context)
    before, after = tokenizer.decode(window), tokenizer.decode([*window, *tokens])
    return _after(before, after)


class IncrementalDecoder:
    """The text that a growing context gains, token by token. Costs the same for every token, however many there were.

    What `feed` returned, joined, and `pending` are the text that the context has gained so far; with what `feed`
    returned alone, it begins whatever comes.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._settling = tokenizer.settling
        end = len(context)
        while end and not _is_border(tokenizer, context[end - 1]):
            end -= 1
        self._window = _window(tokenizer, context[:end])
        """Tokens that end with a run of bytes have it in `_run`; these do not."""
        self._text = tokenizer.decode(self._window)
        self._shown = self._settling.settled(self._text)
        """Characters of the window's text that `feed` has returned, or that the context has."""
        self._run: list[int] = []
        self._run_text = ""
        """The whole characters of the run, as long as all its bytes make some."""
        self._last: list[int] = []
        """The bytes of the last of them."""
        self._character: list[int] = []
        """The run's bytes after them."""
        for token in context[end:]:
            if tokenizer.has(token):
                self._take_byte(token)
        before = tokenizer.decode([*self._window, *self._run]) if self._run else self._text
        self._known = before[self._shown :]
        """Text that the context has, but that may still change."""
        self._began_whole = not self._character
        """Whether the context ends with a whole character; else the text of its run is not known before that is."""

    def feed(self, token: int) -> str:
        """Takes the next token; returns the text that is settled with it, "" where nothing is."""
        if not self._tokenizer.has(token):
            return ""
        if token in self._settling.byte_tokens:
            self._take_byte(token)
            return ""
        self._window += [*self._run, token]
        self._run, self._run_text, self._last, self._character = [], "", [], []
        self._began_whole = True
        if not self._settling.is_local:
            return ""
        self._text = self._tokenizer.decode(self._window)
        settled = max(self._shown, self._settling.settled(self._text))
        piece = self._text[self._shown : settled]
        self._shown = settled
        if len(self._window) > 2 * _WINDOW:
            self._shorten()
        new = _after(self._known, piece)
        self._known = self._known[len(piece) :] if self._known.startswith(piece) else ""
        return new

    @property
    def is_open(self) -> bool:
        """Whether the last token has text that is not settled."""
        return bool(self._run) or self._shown < len(self._text)

    @property
    def pending(self) -> str:
        """The text after what `feed` has returned, as it is if no token follows, without characters that lack bytes."""
        run_text = self._run_text if self._began_whole or not self._character else ""
        if run_text and self._settling.cleans_up:
            # Spaces at the end of what precedes the run may be gone.
            whole = self._run[: len(self._run) - len(self._character)]
            tail = self._tokenizer.decode([*self._window, *whole])[self._shown :]
        else:
            text = self._text if self._settling.is_local else self._tokenizer.decode(self._window)
            tail = text[self._shown :] + run_text
        if self._settling.joins_bytes:
            tail = tail.removesuffix(REPLACEMENT)
        return _after(self._known, tail)

    def _take_byte(self, token: int) -> None:
        self._run.append(token)
        self._character.append(token)
        if len(self._character) > _LONGEST_CHARACTER:
            # Some byte belongs to no character, and the whole run is spoilt.
            self._run_text = ""
            return
        # A decoder may take a space from a text's beginning, where the run may stand.
        before = [*self._window, *self._last]
        character = _after(self._tokenizer.decode(before), self._tokenizer.decode([*before, *self._character]))
        if REPLACEMENT not in character:
            self._run_text += character
            self._last, self._character = self._character, []

    def _shorten(self) -> None:
        window = _window(self._tokenizer, self._window)
        text, unshown = self._tokenizer.decode(window), self._text[self._shown :]
        if text.endswith(unshown):
            self._window, self._text, self._shown = window, text, len(text) - len(unshown)


def _window(tokenizer: Tokenizer, context: Sequence[int]) -> list[int]:
    """The last tokens of a context, enough of them for what follows to be decoded as after all of it."""
    settling = tokenizer.settling
    size = _WINDOW if settling.is_local else len(context)
    while size < len(context):
        start = len(context) - size
        while start and not _is_border(tokenizer, context[start]):
            start -= 1
        window = [token for token in context[start:] if tokenizer.has(token)]
        # What a decoder does at a text's beginning, it does in the window's: what may still change stands behind it.
        end = len(window)
        while end and window[end - 1] in settling.byte_tokens:
            end -= 1
        if len(window) >= _LONGEST_CHARACTER and settling.settled(tokenizer.decode(window[:end])):
            return window
        size *= 2
    return [token for token in context if tokenizer.has(token)]


def _is_border(tokenizer: Tokenizer, token: int) -> bool:
    """Whether a token stands in no run of bytes."""
    return token not in tokenizer.settling.byte_tokens and tokenizer.has(token)


def _after(before: str, after: str) -> str:
    if after.startswith(before):
        return after[len(before) :]
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False)))
    return after[common:]
