"""Finding calls of tools in what a thread emits; beside whatever else is looked for in it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from runtime.link.commands import ForeseeingWatcher, Foresight, Signal, Watcher
from runtime.model.incremental import IncrementalDecoder
from runtime.model.tokenizer import Tokenizer


class TokenToolWatcher:
    """Tags that are one token each. A call is a signal "tool", whose text stands between its tags, and at which the
    thread may stop; at `wait` it stops with a signal "results"."""

    def __init__(self, open_: int, close: int, wait: int | None, tokenizer: Tokenizer, *, stops: bool) -> None:
        self._stops = stops
        self._open = open_
        self._close = close
        self._wait = wait
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._opened: int | None = None
        """Where the last tag that opens a call stands."""

    def feed(self, token: int) -> tuple[Signal, ...]:
        at = len(self._tokens)
        self._tokens.append(token)
        if token == self._open:
            self._opened = at
        elif token == self._close and self._opened is not None:
            begin, self._opened = self._opened, None
            text = self._tokenizer.decode(self._tokens[begin + 1 : at])
            return (Signal("tool", start=begin, stops=self._stops, text=text),)
        elif token == self._wait:
            return (Signal("results", start=at, stops=True),)
        return ()

    def foresee(self) -> Foresight:
        """Anything happens at tags alone."""
        tags = {self._close} if self._wait is None else {self._close, self._wait}
        return Foresight(frozenset(tags), 2**31)


class TextToolWatcher:
    """The same on decoded text: tags may be split over tokens in any way."""

    def __init__(
        self, open_: str, close: str, wait: str, tokenizer: Tokenizer, context: Sequence[int] = (), *, stops: bool
    ) -> None:
        self._stops = stops
        self._open = open_
        self._close = close
        self._wait = wait
        self._reach = max(map(len, (open_, close, wait))) - 1
        self._decoder = IncrementalDecoder(tokenizer, context)
        self._text = ""
        """What is settled, from the tag on that may be open or begin."""
        self._searched = 0
        """No tag that is not yet read begins before this offset."""
        self._opened: int | None = None
        """Where the text of a call begins."""
        self._opened_at = 0
        self._seen = 0

    def feed(self, token: int) -> tuple[Signal, ...]:
        self._seen += 1
        self._text += self._decoder.feed(token)
        text = self._text + self._decoder.pending
        signals: list[Signal] = []
        while (found := self._next(text)) is not None:
            begin, tag = found
            self._searched = begin + len(tag)
            if tag == self._open:
                self._opened, self._opened_at = self._searched, self._seen - 1
            elif tag == self._wait:
                signals.append(Signal("results", start=self._seen - 1, stops=True))
                break
            elif self._opened is not None:
                called, self._opened = text[self._opened : begin], None
                signals.append(Signal("tool", start=self._opened_at, stops=self._stops, text=called))
                if self._stops:
                    break
        self._searched = max(self._searched, len(self._text) - self._reach)
        self._forget(min(self._searched if self._opened is None else self._opened, len(self._text)))
        return tuple(signals)

    def _forget(self, count: int) -> None:
        """Drops text that no call has in it: otherwise each token would cost as much as all before it."""
        self._text = self._text[count:]
        self._searched -= count
        if self._opened is not None:
            self._opened -= count

    def _next(self, text: str) -> tuple[int, str] | None:
        """The first tag that is not read yet, and where it begins."""
        places = [(text.find(tag, self._searched), tag) for tag in (self._open, self._close, self._wait) if tag]
        return min((place for place in places if place[0] >= 0), default=None)


class Resumed:
    """A watcher that goes on where a generate has stopped for a tool: its offsets are counted from there."""

    def __init__(self, watcher: Watcher, seen: int) -> None:
        """`seen` is how many tokens it was fed before."""
        self._watcher = watcher
        self._seen = seen

    def feed(self, token: int) -> tuple[Signal, ...]:
        return tuple(self._counted(signal) for signal in self._watcher.feed(token))

    def foresee(self) -> Foresight | None:
        return self._watcher.foresee() if isinstance(self._watcher, ForeseeingWatcher) else None

    def _counted(self, signal: Signal) -> Signal:
        keep = None if signal.keep is None else signal.keep - self._seen
        if keep is not None and keep < 0:
            return Signal(
                "malformed",
                stops=True,
                reason="a block that is cut out of the context has a tool's call in it, whose result would stay",
            )
        return msgspec.structs.replace(signal, start=max(0, signal.start - self._seen), keep=keep)
