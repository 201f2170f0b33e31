"""What watchers over ids and over text share: from tags to signals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from runtime.link.commands import Signal
from runtime.protocol.declaration import TagProtocol
from runtime.protocol.grammar import Meaning, State, Table, Tag

Tokens = tuple[int, ...]


class Place(NamedTuple):
    """Where a tag stands."""

    token: int
    """Number of the token that holds its first character."""
    begin: int
    """Its first and its past-the-end offset, in the watcher's own units: tokens, or characters."""
    end: int


class Unusable(Exception):
    """A message that cannot be used, and why."""


class TagWatcher(ABC):
    """Follows the grammar and makes signals; subclasses find the tags and read the messages between them."""

    def __init__(self, protocol: TagProtocol, table: Table, lenient: bool) -> None:
        self._protocol = protocol
        self._table = table
        self._lenient = lenient
        """Read to the end whatever comes, for what is returned."""
        self._ignores = lenient or protocol.on_malformed == "ignore"
        self._state = State.OUTSIDE
        self._around_spawn = State.BLOCK if protocol.block_open else State.OUTSIDE
        self._opened = Place(0, 0, 0)
        self._block = Place(0, 0, 0)
        self._returned: tuple[Tokens, int] | None = None

    @abstractmethod
    def feed(self, token: int) -> tuple[Signal, ...]:
        """Takes the next emitted token and gives what it completes."""

    @abstractmethod
    def returned(self) -> Tokens:
        """The message returned so far, if the thread ended here without an end tag; empty for none."""

    @abstractmethod
    def _child_prompt(self, begin: int, end: int) -> Tokens:
        """The child's prompt from the message between two offsets; raises `Unusable`."""

    @abstractmethod
    def _returned_message(self, begin: int, end: int) -> Tokens:
        """The returned message between two offsets; raises `Unusable`."""

    def _sent(self, begin: int, end: int) -> tuple[str, str]:
        """The address and the message of what a thread sends; raises `Unusable`, always where matching is on ids: a
        protocol with messages is matched on text."""
        raise Unusable("messages to other threads are read from text")

    @abstractmethod
    def _put_back(self, block: Place) -> Tokens:
        """What a cut at a block takes away although it stands before the block."""

    @abstractmethod
    def _returned_at_end(self, end: Place) -> tuple[Tokens, int]:
        """The returned message of a thread that ends outside of return tags, and the token at which it starts."""

    def _is_plain(self, tag: Tag) -> bool:
        """Whether a tag is read as if it were none."""
        step = self._table.get((self._state, tag))
        return self._ignores if step is None else step[1] is Meaning.PLAIN

    def _read(self, tag: Tag, text: str, at: Place) -> tuple[Signal, ...]:
        """Takes a tag; `text` is how it is written."""
        state = self._state
        step = self._table.get((state, tag))
        if step is None:
            return self._malformed(f"{text!r} cannot stand {state.value}", at.token)
        self._state, meaning = step
        try:
            return self._act(meaning, state, at)
        except Unusable as unusable:
            return self._malformed(str(unusable), self._opened.token)

    def _act(self, meaning: Meaning, before: State, at: Place) -> tuple[Signal, ...]:
        match meaning:
            case Meaning.OPENED:
                self._opened = at
            case Meaning.BLOCK_OPENED:
                self._block = at
            case Meaning.SPAWNED if not self._lenient:
                prompt = self._child_prompt(self._opened.end, at.begin)
                return (Signal("spawn", prompt, self._opened.token),)
            case Meaning.RETURNED:
                self._returned = self._returned_message(self._opened.end, at.begin), self._opened.token
            case Meaning.JOINED:
                return (self._join(at),)
            case Meaning.SENT if not self._lenient:
                address, message = self._sent(self._opened.end, at.begin)
                return (Signal("send", start=self._opened.token, stops=True, address=address, text=message),)
            case Meaning.RECEIVED if not self._lenient:
                return (Signal("receive", start=at.token, stops=True),)
            case Meaning.ENDED:
                return (self._end(before, at),)
        return ()

    def _join(self, at: Place) -> Signal:
        if self._protocol.join:
            return Signal("join", start=at.token, stops=True)
        if self._protocol.cuts_block:
            back = self._put_back(self._block)
            return Signal("join", back, self._block.token, stops=True, keep=self._block.token)
        return Signal("join", start=self._block.token, stops=True)

    def _end(self, before: State, at: Place) -> Signal:
        try:
            if before is State.RETURN:
                message, start = self._returned_message(self._opened.end, at.begin), self._opened.token
            else:
                message, start = self._returned or self._returned_at_end(at)
        except Unusable:
            if not self._ignores:
                raise
            message, start = (), at.token
        return Signal("end", message, start, stops=True)

    def _malformed(self, reason: str, start: int) -> tuple[Signal, ...]:
        if self._ignores:
            return ()
        return (Signal("malformed", start=start, stops=True, reason=reason),)

    def _check_length(self, count: int) -> None:
        longest = self._protocol.longest_message
        if longest is not None and count > longest:
            raise Unusable(f"a message is longer than {longest} tokens, the protocol's longest_message")
