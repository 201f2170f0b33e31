"""Regular expressions that a protocol declares, matched within bounds.

They come with checkpoints, which are not trusted: an expression that goes back and forth in a text could hold an
engine for longer than it lives. RE2 reads a text once, in steps of one instruction at one byte, and without the
interpreter's lock; here the steps are bounded too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import re2

from runtime.errors import ProtocolError
from runtime.model.published import shown

MOST_STEPS = 2**24
"""Of one search, a tenth of a second at worst. An expression of 80 instructions, as APR's are, may read 200 KB."""

MOST_STEPS_OF_ALL = 2**28
"""Of a search for every match, a second or two at worst."""

LONGEST_OF_ALL = 1024
"""Characters within which each of the matches is found when all are looked for."""

_LONGEST_PATTERN = 10_000
_LARGEST_PATTERN = 10_000


class Match(NamedTuple):
    """Where an expression matches. A group that took no part is the empty text."""

    begin: int
    end: int
    fields: dict[str, str]
    """Texts of the named groups."""
    spans: dict[str, tuple[int, int]]
    """Where the named groups begin and end; -1 and -1 for one that took no part."""


class Pattern:
    """A regular expression in RE2's syntax: what Python's `re` has, but for lookarounds and back references.

    Immutable. Raises `ProtocolError` for what is none, or one so large that not even short texts are within the bounds.
    """

    def __init__(self, source: str) -> None:
        options = re2.Options()
        options.log_errors = False
        self.source = source
        if len(source) > _LONGEST_PATTERN:
            raise ProtocolError(f"{shown(source)} is longer than {_LONGEST_PATTERN} characters; declare a shorter one.")
        try:
            self._compiled = re2.compile(source, options)
            self._groups: Mapping[str, int] = self._compiled.groupindex
        except (re2.error, UnicodeError) as error:
            reason = error.args[0].decode() if isinstance(error, re2.error) else str(error)
            raise ProtocolError(
                f"{shown(source)} is no regular expression of RE2 ({shown(reason)}). It has no lookarounds and no back "
                "references, whose matching could take for ever; declare a pattern without them."
            ) from error
        self._size: int = self._compiled.programsize
        if self._size > _LARGEST_PATTERN:
            raise ProtocolError(f"{shown(source)} is too large for a pattern; declare one with shorter repetitions.")

    @property
    def groups(self) -> frozenset[str]:
        """Names of its groups."""
        return frozenset(self._groups)

    def search(self, text: str) -> Match | None:
        """The leftmost match. Raises `ProtocolError` for a text that would take too long."""
        self._check(self._steps(text))
        return self._match(self._compiled.search(text))

    def match_whole(self, text: str) -> Match | None:
        """The match of a whole text. Raises `ProtocolError` for a text that would take too long."""
        self._check(self._steps(text))
        return self._match(self._compiled.fullmatch(text))

    def find_all(self, text: str, most: int = MOST_STEPS_OF_ALL) -> Iterator[Match]:
        """The matches that do not overlap, from left to right, each within `LONGEST_OF_ALL` characters.

        Raises `ProtocolError` when they have taken more than `most` steps.
        """
        steps, at = 0, 0
        while at <= len(text):
            window = text[at : at + 2 * LONGEST_OF_ALL]
            # A search costs what it reads of the text, and some for handing it the text.
            steps += self._steps(window) + len(text) // 16
            self._check(steps, most)
            found = self._match(self._compiled.search(text, at, at + 2 * LONGEST_OF_ALL))
            if found is None or found.begin >= at + LONGEST_OF_ALL:
                at += LONGEST_OF_ALL
                continue
            yield found
            at = max(found.end, found.begin + 1)

    def _match(self, found: re2._Match | None) -> Match | None:
        if found is None:
            return None
        spans = {name: found.span(group) for name, group in self._groups.items()}
        begin, end = found.span()
        return Match(begin, end, found.groupdict(""), spans)

    def _steps(self, text: str) -> int:
        return self._size * (len(text.encode()) + 1)

    def _check(self, steps: int, most: int = MOST_STEPS) -> None:
        if steps > most:
            raise ProtocolError(
                f"the text is too long for the pattern {shown(self.source)}: it would take {steps} steps, more than "
                f"{most}. Declare a shorter pattern, or let threads be shorter."
            )
