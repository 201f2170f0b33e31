"""Control tokens spelled out in users' strings: marked before a template is filled, and plain text after it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Around a control token in a user's string. Unicode keeps these code points for a program's own use, so no text that
is meant for anybody has them."""
RESERVED = re.compile("[\ufdd0-\ufdef]")


class Marking:
    """Marks some tokens in users' strings, the longest first where one contains another."""

    def __init__(self, tokens: Collection[str]) -> None:
        self._pattern = any_of(tokens)

    def marked(self, text: str) -> str:
        """The text with marks around every token in it. Marks that it has already are taken out."""
        return self._pattern.sub(f"{OPEN}\\g<0>{CLOSE}", RESERVED.sub("", text))

    def values(self, value: object) -> object:
        """JSON-like data with every string in it marked, but for keys."""
        if isinstance(value, str):
            return self.marked(value)
        if isinstance(value, Mapping):
            return {key: self.values(item) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self.values(item) for item in value]
        return value


class Marked:
    """Cuts marked text, as a template has left it, into what is parsed for tokens and what is not."""

    def __init__(self, tokens: Collection[str]) -> None:
        self._pattern = re.compile(f"{OPEN}({any_of(tokens).pattern}){CLOSE}|[{OPEN}{CLOSE}]")

    def pieces(self, text: str) -> Iterator[tuple[str, bool]]:
        """Pieces in order, without marks, and whether each is plain text. A template may have cut a marked token
        apart; what is left of its marks still parts the text, so that no token comes of two pieces."""
        for index, piece in enumerate(self._pattern.split(text)):
            if piece:
                yield piece, index % 2 == 1


def any_of(tokens: Collection[str]) -> re.Pattern[str]:
    """Finds the first of some tokens in a text, the longest where several begin."""
    longest_first = sorted((token for token in tokens if token), key=len, reverse=True)
    # (?!) is nowhere.
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
