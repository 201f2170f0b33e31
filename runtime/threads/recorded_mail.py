"""Mail as it was recorded: while a trace is played back, threads get the messages that they got then, in that order.

Messages go from coroutine to coroutine, so that in a run of its own which comes first is up to the event loop. Played
back, the n-th message that a thread sends is the n-th one recorded of it, and so for what it receives and posts: it
waits until what it took then has been sent again.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio

from runtime.errors import TraceError
from runtime.link.commands import ThreadPath
from runtime.link.events import AnyEvent, MessageSent, MessagesReceived, Posted, encodable

Recorded = TypeVar("Recorded")

_ADVICE = "Play a trace back with the program, the policy and the settings that made it."


class RecordedMail:
    """What the threads of a trace sent, received and posted. Methods raise `TraceError` where a program differs."""

    def __init__(self, events: Iterable[AnyEvent], patience: float = 2.0) -> None:
        """`patience`, seconds, is how much longer than the whole recording anything is waited for."""
        self._sent: dict[ThreadPath, deque[MessageSent]] = {}
        self._received: dict[ThreadPath, deque[MessagesReceived]] = {}
        self._posted: dict[ThreadPath, deque[tuple[int, Posted]]] = {}
        self._patience = patience
        self._until = math.inf
        posts: dict[int, int] = {}
        first = last = 0.0
        for event in events:
            first, last = first or event.time, event.time
            match event:
                case MessageSent(thread=path):
                    self._sent.setdefault(path, deque()).append(event)
                case MessagesReceived(thread=path):
                    self._received.setdefault(path, deque()).append(event)
                case Posted(thread=path):
                    place = posts.get(path[0], 0)
                    posts[path[0]] = place + 1
                    self._posted.setdefault(path, deque()).append((place, event))
        self._seconds = last - first

    def sent(self, path: ThreadPath, to: ThreadPath, text: str, tokens: tuple[int, ...]) -> MessageSent:
        """The next message of a thread, which is this one."""
        recorded = self._next(self._sent, path, "sends a message to")
        found = (to, encodable(text), tokens)
        if (recorded.to, recorded.text, recorded.tokens) != found:
            raise differs(
                path, f"the message it sends is {found!r}, and was {(recorded.to, recorded.text, recorded.tokens)!r}"
            )
        return recorded

    def received(self, path: ThreadPath) -> MessagesReceived:
        """What the next look of a thread for messages came to."""
        return self._next(self._received, path, "receives messages")

    def posted(self, path: ThreadPath, text: str) -> int:
        """The place on the board of the next text that a thread posts, which is this one."""
        place, recorded = self._next(self._posted, path, "posts")
        if recorded.text != encodable(text):
            raise differs(path, f"the text it posts is {text!r}, and was {recorded.text!r}")
        return place

    @asynccontextmanager
    async def awaiting(self, path: ThreadPath, what: Callable[[], str]) -> AsyncIterator[None]:
        """A block that waits for something recorded, for no longer than the recording took, and a moment."""
        if self._until == math.inf:
            self._until = time.monotonic() + self._seconds + self._patience
        with anyio.move_on_after(max(0.0, self._until - time.monotonic())) as scope:
            yield
        if scope.cancelled_caught:
            raise differs(path, what())

    def _next(self, of: dict[ThreadPath, deque[Recorded]], path: ThreadPath, how: str) -> Recorded:
        recorded = of.get(path)
        if not recorded:
            raise differs(path, f"the program {how} where the recording does not")
        return recorded.popleft()


def differs(path: ThreadPath, how: str) -> TraceError:
    """Why a thread cannot be played back."""
    return TraceError(f"Thread {'.'.join(map(str, path))} differs from the recording: {how}. {_ADVICE}")
