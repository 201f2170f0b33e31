"""Matching on token ids: every tag is one token, and messages keep their ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from runtime.link.commands import Foresight, Signal
from runtime.protocol.declaration import TagProtocol
from runtime.protocol.grammar import State, Table, Tag
from runtime.protocol.templates import IdTemplate, fill
from runtime.protocol.watcher import Place, TagWatcher, Tokens, Unusable


class TokenWatcher(TagWatcher):
    """One dictionary look-up a token. Offsets are numbers of tokens."""

    def __init__(
        self,
        protocol: TagProtocol,
        table: Table,
        tags: Mapping[int, tuple[Tag, str]],
        child: IdTemplate,
        led: Callable[[Sequence[int]], list[int]],
        lenient: bool = False,
    ) -> None:
        super().__init__(protocol, table, lenient)
        self._tags = tags
        self._tag_tokens = frozenset(tags)
        self._child = child
        self._led = led
        self._emitted: list[int] = []

    def feed(self, token: int) -> tuple[Signal, ...]:
        at = len(self._emitted)
        self._emitted.append(token)
        found = self._tags.get(token)
        if found is not None and not self._is_plain(found[0]):
            return self._read(*found, Place(at, at, at + 1))
        if self._state is State.SPAWN or self._state is State.RETURN:
            try:
                self._check_length(at + 1 - self._opened.end)
            except Unusable as unusable:
                self._state = self._around_spawn if self._state is State.SPAWN else State.OUTSIDE
                return self._malformed(str(unusable), self._opened.token)
        return ()

    def foresee(self) -> Foresight:
        """Anything happens at tags alone, but for a message that becomes too long."""
        longest = self._protocol.longest_message
        quiet = 2**31 if longest is None else longest
        if longest is not None and (self._state is State.SPAWN or self._state is State.RETURN):
            quiet = max(0, longest - (len(self._emitted) - self._opened.end))
        return Foresight(self._tag_tokens, quiet)

    def returned(self) -> Tokens:
        return () if self._returned is None else self._returned[0]

    def _child_prompt(self, begin: int, end: int) -> Tokens:
        if begin == end:
            raise Unusable("a spawn's message is empty")
        return tuple(self._led(fill(self._child, {"message": self._emitted[begin:end]})))

    def _returned_message(self, begin: int, end: int) -> Tokens:
        return tuple(self._emitted[begin:end])

    def _put_back(self, block: Place) -> Tokens:
        return ()

    def _returned_at_end(self, end: Place) -> tuple[Tokens, int]:
        return (), end.token
