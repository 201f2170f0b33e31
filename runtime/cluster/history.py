"""What a context came from: enough to make it again on another replica, token by token the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from policies import DepthPolicy
from runtime.link.commands import Generate, OpenThread, ThreadPath


class Received(NamedTuple):
    """Tokens that were appended from outside."""

    tokens: tuple[int, ...]


class Said(NamedTuple):
    """Tokens that a generate left in the context."""

    tokens: tuple[int, ...]
    request: Generate
    """As it was asked for."""
    depth: DepthPolicy
    """The policy that was in force."""


class Asked(NamedTuple):
    """A generate that has scored or filled: no tokens, but the context was computed to its end then, as one part."""

    tokens: tuple[()]
    request: Generate
    depth: DepthPolicy


class Merged(NamedTuple):
    """What children had beyond the context, taken over with its keys and values."""

    tokens: tuple[int, ...]
    children: tuple[Snapshot, ...]
    """In the order in which they were merged; those that had something."""


Entry = Received | Said | Asked | Merged


class Snapshot(NamedTuple):
    """A thread as it was at some moment."""

    opening: OpenThread
    draws_as: ThreadPath
    history: History


class History(NamedTuple):
    """A context that is never changed in place: who goes on with it has it as it was."""

    inherited: Snapshot | None = None
    """Of a fork, what it began with."""
    entries: tuple[Entry, ...] = ()
    length: int = 0
    """Tokens, inherited ones included."""

    @classmethod
    def of_fork(cls, parent: Snapshot) -> History:
        """What a fork of a thread begins with."""
        return cls(parent, (), parent.history.length)

    def plus(self, entry: Entry) -> History:
        """With one entry more; as it is where nothing was received, said or merged."""
        if not entry.tokens and not isinstance(entry, Asked):
            return self
        return self._replace(entries=(*self.entries, entry), length=self.length + len(entry.tokens))

    def cut(self, length: int) -> History:
        """Without the tokens from `length` on, which no inherited ones are among."""
        entries, total = list(self.entries), self.length
        while total > length and entries:
            last = entries.pop()
            total -= len(last.tokens)
            if total < length and not isinstance(last, Merged | Asked):
                kept = length - total
                entries.append(last._replace(tokens=last.tokens[:kept]))
                total = length
        return self._replace(entries=tuple(entries), length=total)

    def own(self) -> Iterator[int]:
        """Its tokens beyond the inherited ones."""
        for entry in self.entries:
            yield from entry.tokens

    def tokens(self) -> Iterator[int]:
        """All of them, from the first."""
        if self.inherited is not None:
            yield from self.inherited.history.tokens()
        yield from self.own()
