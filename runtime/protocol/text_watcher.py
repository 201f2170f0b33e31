"""Matching on decoded text: tags may be split over tokens in any way, and patterns may be declared."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from runtime.errors import PromptError, ProtocolError
from runtime.link.commands import Signal
from runtime.model.incremental import IncrementalDecoder
from runtime.model.tokenizer import Tokenizer
from runtime.protocol.declaration import Definition, TagProtocol
from runtime.protocol.grammar import Table, Tag
from runtime.protocol.patterns import MOST_STEPS_OF_ALL, Pattern
from runtime.protocol.watcher import Place, TagWatcher, Tokens, Unusable

Fields = dict[str, str]


class TextTags(NamedTuple):
    """How tags, and what the protocol declares by patterns, are found in text."""

    by_text: Mapping[str, Tag]
    pattern: re.Pattern[str]
    """Any of them; none contains another, so that the leftmost match is the one that completes first."""
    longest: int
    """Characters of the longest of them."""
    message: Pattern
    sent: Pattern
    returned: Pattern
    definitions: Sequence[tuple[Definition, Pattern]]
    """Each with its pattern."""


def text_tags(by_text: Mapping[str, Tag], protocol: TagProtocol) -> TextTags:
    return TextTags(
        by_text,
        re.compile("|".join(map(re.escape, by_text))),
        max(map(len, by_text)),
        Pattern(protocol.message_pattern),
        Pattern(protocol.send_pattern),
        Pattern(protocol.return_pattern),
        [(definition, Pattern(definition.pattern)) for definition in protocol.definitions],
    )


class TextWatcher(TagWatcher):
    """Offsets are characters of the text emitted so far."""

    def __init__(
        self,
        protocol: TagProtocol,
        table: Table,
        tags: TextTags,
        tokenizer: Tokenizer,
        context: Sequence[int] = (),
        lenient: bool = False,
    ) -> None:
        super().__init__(protocol, table, lenient)
        self._tags = tags
        self._tokenizer = tokenizer
        # The caller's own may grow while this watcher is in use.
        self._context = tuple(context) if protocol.definitions else ()
        self._decoder = IncrementalDecoder(tokenizer, context)
        self._seen = 0
        self._unread = 0
        """Number of the first token whose text is not settled yet."""
        self._text = ""
        """What is settled, and then what is pending."""
        self._settled = 0
        self._searched = 0
        """No tag that is not yet read begins before this offset."""
        self._piece_offset: list[int] = []
        self._piece_token: list[int] = []
        self._defined: tuple[int, dict[str, Fields]] | None = None

    def feed(self, token: int) -> tuple[Signal, ...]:
        self._seen += 1
        piece, pending = self._decoder.feed(token), self._decoder.pending
        if len(self._text) > self._settled:
            self._text = self._text[: self._settled]
        if piece:
            self._piece_offset.append(self._settled)
            self._piece_token.append(self._unread)
            self._unread = self._seen - self._decoder.is_open
            self._text += piece
            self._settled = len(self._text)
        if pending:
            self._text += pending
        return self._read_text() if piece or pending else ()

    def returned(self) -> Tokens:
        if self._returned is not None:
            return self._returned[0]
        try:
            return self._returned_at_end(Place(self._seen, len(self._text), len(self._text)))[0]
        except Unusable:
            return ()

    def _encode(self, text: str) -> Tokens:
        try:
            return tuple(self._tokenizer.encode_inside(text))
        except PromptError as error:
            raise Unusable(str(error)) from error

    def _read_text(self) -> tuple[Signal, ...]:
        signals: tuple[Signal, ...] = ()
        while match := self._tags.pattern.search(self._text, self._searched):
            self._searched = match.end()
            tag = self._tags.by_text[match[0]]
            if self._is_plain(tag):
                continue
            signals += self._read(tag, match[0], Place(self._token_at(match.start()), *match.span()))
            if signals and signals[-1].stops and not self._lenient:
                return signals  # what the last token says beyond is read with the next one, if there is one
        self._searched = max(self._searched, len(self._text) - self._tags.longest + 1)
        return signals

    def _token_at(self, offset: int) -> int:
        if offset >= self._settled:
            return self._unread
        return self._piece_token[bisect_right(self._piece_offset, offset) - 1]

    def _message(self, begin: int, end: int) -> str:
        message = self._text[begin:end]
        return message.strip() if self._protocol.strip else message

    def _child_prompt(self, begin: int, end: int) -> Tokens:
        message = self._message(begin, end)
        if not message:
            raise Unusable("a spawn's message is empty")
        if self._protocol.longest_message is not None:
            self._check_length(len(self._encode(message)))
        fields = {"message": message, **self._fields(message)}
        try:
            prompt = self._tokenizer.encode(self._protocol.child.format_map(fields))
        except KeyError as missing:
            raise Unusable(f"spawn message {message!r} gives no value for {missing} of the child's prompt") from missing
        except PromptError as error:
            raise Unusable(str(error)) from error
        if not prompt:
            raise Unusable(f"spawn message {message!r} makes a prompt without tokens")
        return tuple(self._tokenizer.led(prompt))

    def _fields(self, message: str) -> Fields:
        protocol = self._protocol
        if not protocol.message_pattern:
            return {}
        try:
            match = self._tags.message.match_whole(message)
            if match is None:
                raise Unusable(f"spawn message {message!r} does not match the protocol's message_pattern")
            return match.fields if not protocol.definitions else self._defined_fields(message, match.fields)
        except ProtocolError as error:
            raise Unusable(str(error)) from error

    def _defined_fields(self, message: str, fields: Fields) -> Fields:
        """What the text defines by the name in a spawn's fields, and those fields."""
        # One block's spawns refer to the same text: that before the block.
        before = self._block.begin if self._protocol.block_open else self._opened.begin
        if self._defined is None or self._defined[0] != before:
            text = self._tokenizer.decode(self._context) + self._text[:before]
            self._defined = before, definitions_in(text, self._tags.definitions)
        if fields["name"] not in self._defined[1]:
            raise Unusable(f"spawn message {message!r} refers to {fields['name']!r}, which was not defined before")
        return self._defined[1][fields["name"]] | fields

    def _returned_message(self, begin: int, end: int) -> Tokens:
        message = self._encode(self._message(begin, end))
        self._check_length(len(message))
        return message

    def _sent(self, begin: int, end: int) -> tuple[str, str]:
        message = self._text[begin:end]
        try:
            match = self._tags.sent.match_whole(message)
        except ProtocolError as error:
            raise Unusable(str(error)) from error
        if match is None:
            raise Unusable(f"message {message!r} does not match the protocol's send_pattern")
        text = match.fields["message"]
        if self._protocol.longest_message is not None:
            self._check_length(len(self._encode(text)))
        return match.fields["to"], text.strip() if self._protocol.strip else text

    def _put_back(self, block: Place) -> Tokens:
        piece = bisect_right(self._piece_offset, block.begin) - 1
        begin = self._settled if block.begin >= self._settled else self._piece_offset[piece]
        before = self._text[begin : block.begin]
        return self._encode(before) if before else ()

    def _returned_at_end(self, end: Place) -> tuple[Tokens, int]:
        if self._protocol.return_pattern:
            try:
                match = self._tags.returned.search(self._text[: end.begin])
            except ProtocolError as error:
                raise Unusable(str(error)) from error
            if match is not None:
                begin, past = match.spans["message"]
                message = self._returned_message(begin, past)
                return message, self._token_at(begin) if message else end.token
        return (), end.token


def definitions_in(text: str, definitions: Sequence[tuple[Definition, Pattern]]) -> dict[str, Fields]:
    """By name, the fields of everything a text defines; what refers to an unknown parent is left out.

    Raises `ProtocolError` for a text in which finding it all would take too long.
    """
    known: dict[str, Fields] = {}
    for definition, pattern in definitions:
        found: dict[str, Fields] = {}
        for match in pattern.find_all(text, MOST_STEPS_OF_ALL // len(definitions)):
            fields = match.fields
            name = fields["name"]
            if name in known:
                continue
            if definition.appends:
                parent = known.get(fields["parent"], found.get(fields["parent"]))
                if parent is None:
                    continue
                for field, template in definition.appends.items():
                    parts = (parent.get(field, ""), template.format_map(fields))
                    fields[field] = definition.separator.join(part for part in parts if part)
            found[name] = fields
        known |= found
    return known
