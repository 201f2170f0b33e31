"""One generate's way through its constraint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from runtime.link.constraints import Matcher, TokenMask, Words
from runtime.protocol.constraints.compiling import refused
from runtime.protocol.constraints.worker import MaskWorker, PendingMask

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Matching:
    """A `Matcher` over llguidance's. The mask after a token is asked for as soon as the token is known."""

    def __init__(
        self, matcher: LLMatcher, worker: MaskWorker, name: str, ends: frozenset[int], *, waits: bool = False
    ) -> None:
        """`name` is the kind of constraint, for errors. One of `ends` may come where the text may end; where nothing
        else can follow, the text is over without it, unless it `waits` for one."""
        self._matcher = matcher
        self._worker = worker
        self._name = name
        self._ends = ends
        self._waits = waits
        self._next: PendingMask = worker.ask(matcher, name, ends)

    def mask(self) -> PendingMask:
        """See `Matcher`."""
        return self._next

    def halts(self) -> None:
        """See `Matcher`."""

    def feed(self, token: int) -> bool:
        """See `Matcher`."""
        self._next.wait()
        if self._next.failure is not None:
            raise self._next.failure
        if token in self._ends:
            return True
        if not self._matcher.consume_token(token):
            raise refused(self._name, self._matcher.get_error())
        if self._matcher.is_stopped() and not self._waits:
            return True
        self._next = self._worker.ask(self._matcher, self._name, self._ends)
        return False


class WithOne:
    """A mask that allows one token more."""

    def __init__(self, mask: TokenMask, token: int) -> None:
        self._mask = mask
        self._token = token

    def is_ready(self) -> bool:
        """See `TokenMask`."""
        return self._mask.is_ready()

    def wait(self) -> Words:
        """See `TokenMask`."""
        words = self._mask.wait().copy()
        words[self._token >> 5] |= 1 << (self._token & 31)
        return words


class AfterThought:
    """A `Matcher` whose text may follow a thought, in which all is free."""

    def __init__(self, inner: Matcher, opens: int, closes: int, *, is_thinking: bool, has_begun: bool) -> None:
        """`has_begun` if no thought may come any more."""
        self._inner = inner
        self._opens = opens
        self._closes = closes
        self._is_thinking = is_thinking
        self._has_begun = has_begun

    def mask(self) -> TokenMask | None:
        """See `Matcher`."""
        if self._is_thinking:
            return None
        mask = self._inner.mask()
        return mask if mask is None or self._has_begun else WithOne(mask, self._opens)

    def halts(self) -> frozenset[int] | None:
        """See `Matcher`."""
        return frozenset([self._closes]) if self._is_thinking else self._inner.halts()

    def feed(self, token: int) -> bool:
        """See `Matcher`."""
        if self._is_thinking:
            if token == self._closes:
                self._is_thinking, self._has_begun = False, True
            return False
        if token == self._opens and not self._has_begun:
            self._is_thinking = True
            return False
        self._has_begun = True
        return self._inner.feed(token)


class InBlocks:
    """A `Matcher` for what stands between tags, as often as they are opened; all else is free."""

    def __init__(
        self, blocks: Mapping[int, Callable[[], Matcher]], thought: tuple[int, int] | None, *, is_thinking: bool
    ) -> None:
        """`blocks` has what makes a matcher, by the token that opens them."""
        self._blocks = blocks
        self._open: Matcher | None = None
        self._thought = thought
        self._is_thinking = is_thinking

    def mask(self) -> TokenMask | None:
        """See `Matcher`."""
        return None if self._open is None else self._open.mask()

    def halts(self) -> frozenset[int] | None:
        """See `Matcher`."""
        return frozenset([*self._blocks, *(self._thought or ())]) if self._open is None else None

    def feed(self, token: int) -> bool:
        """See `Matcher`."""
        if self._open is not None:
            if self._open.feed(token):
                self._open = None
        elif self._thought is not None and token in self._thought:
            self._is_thinking = token == self._thought[0]
        elif not self._is_thinking and token in self._blocks:
            self._open = self._blocks[token]()
        return False
