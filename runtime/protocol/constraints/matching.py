"""One generate's way through its constraint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.link.constraints import Constraint
from runtime.protocol.constraints.compiling import refused
from runtime.protocol.constraints.worker import MaskWorker, PendingMask

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Matching:
    """A `Matcher` over llguidance's. The mask after a token is asked for as soon as the token is known."""

    def __init__(
        self, matcher: LLMatcher, worker: MaskWorker, constraint: Constraint, stop_tokens: frozenset[int]
    ) -> None:
        self._matcher = matcher
        self._worker = worker
        self._constraint = constraint
        self._stop_tokens = stop_tokens
        self._next: PendingMask = worker.ask(matcher, constraint)

    def mask(self) -> PendingMask:
        """See `Matcher`."""
        return self._next

    def feed(self, token: int) -> bool:
        """See `Matcher`."""
        self._next.wait()
        if self._next.failure is not None:
            raise self._next.failure
        if token in self._stop_tokens:
            return True
        if not self._matcher.consume_token(token):
            raise refused(self._constraint, self._matcher.get_error())
        if self._matcher.is_stopped():
            return True
        self._next = self._worker.ask(self._matcher, self._constraint)
        return False
