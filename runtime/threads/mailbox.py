"""The mailbox of one thread: what was sent to it and not yet received. Used on the event loop only."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence

import msgspec

from runtime.errors import ThreadStateError
from runtime.link.commands import ThreadPath
from runtime.threads.inbox import Wakeup

MOST_MESSAGES = 64
"""Messages that a mailbox holds before those who send to it wait."""


class ThreadMessage(msgspec.Struct, frozen=True, kw_only=True):
    """What one thread has sent to another, or posted on the board."""

    sender: ThreadPath
    text: str
    """Of token ids, what they say; empty without a tokenizer."""
    tokens: tuple[int, ...] = ()
    """Token ids, where these were sent; empty for a text."""


class Mailbox:
    """Messages in the order in which they were sent. An empty one is small, because every thread has one."""

    __slots__ = (
        "_held",
        "_new_wakeup",
        "_promised",
        "_reader",
        "_senders",
        "is_closed",
        "is_parked",
        "posts_seen",
        "refusal",
        "template",
    )

    def __init__(self, new_wakeup: Callable[[], Wakeup]) -> None:
        self.is_closed = False
        self.is_parked = False
        """Whether its thread waits for others, who then need not wait for room: it takes whatever comes."""
        self.refusal = ""
        """Why its thread never receives anything; empty where it may."""
        self.template: str | None = None
        """How its thread writes a message down, where its model drives it; None where a program takes it."""
        self.posts_seen = 0
        """How many posts of the board its thread has passed."""
        self._new_wakeup = new_wakeup
        self._held: deque[ThreadMessage] | None = None
        self._senders: deque[Wakeup] | None = None
        """Those who wait for room, longest first."""
        self._promised = 0
        """Places of those who were woken for them and have yet to put their messages."""
        self._reader: Wakeup | None = None

    def __len__(self) -> int:
        return 0 if self._held is None else len(self._held)

    async def room(self, path: ThreadPath) -> None:
        """Returns when there is a place, which the caller takes at once by `put`; first come, first served.

        Raises `ThreadStateError` for one that is closed, also meanwhile. Cancelled, it has taken no place.
        """
        self.check(path)
        if self._has_room and not self._senders:
            return
        wakeup = self._new_wakeup()
        if self._senders is None:
            self._senders = deque()
        self._senders.append(wakeup)
        try:
            await wakeup.wait()
        except BaseException:
            if wakeup in self._senders:
                self._senders.remove(wakeup)
            else:
                self._promised -= 1
                self._tell_senders()
            raise
        self._promised -= 1
        self.check(path)

    def check(self, path: ThreadPath) -> None:
        """Raises `ThreadStateError` where nothing can be sent to its thread any more."""
        if self.is_closed:
            raise ThreadStateError(f"Thread {path} has ended, so that it receives no message. Send while it is open.")
        if self.refusal:
            raise ThreadStateError(f"Thread {path} receives no messages: {self.refusal}")

    def put(self, message: ThreadMessage) -> None:
        if self._held is None:
            self._held = deque()
        self._held.append(message)
        self.wake_reader()

    def take(self, sender: ThreadPath | None = None) -> ThreadMessage | None:
        """The oldest message, or the oldest of one sender; None where there is none."""
        held = self._held or ()
        for index, message in enumerate(held):
            if sender is None or message.sender == sender:
                assert self._held is not None
                del self._held[index]
                self._tell_senders()
                return message
        return None

    def has(self, senders: Sequence[ThreadPath]) -> bool:
        """Whether there are as many messages of each sender as there are of it in `senders`."""
        here = Counter(message.sender for message in self._held or ())
        return not Counter(senders) - here

    async def changed(self, path: ThreadPath) -> None:
        """Returns when something may have come. Raises `ThreadStateError` where another coroutine waits already."""
        if self._reader is not None:
            raise ThreadStateError(f"Messages of thread {path} are being received by another coroutine; iterate once.")
        self._reader = self._new_wakeup()
        try:
            await self._reader.wait()
        finally:
            self._reader = None

    def wake_reader(self) -> None:
        if self._reader is not None:
            self._reader.set()

    def park(self, is_parked: bool) -> None:
        """Its thread waits for others, or goes on."""
        self.is_parked = is_parked
        self._tell_senders()

    def refuse(self, why: str) -> None:
        """Its thread will never receive anything: who waits to send to it is told, and what it has is dropped."""
        self.refusal = why
        self._held = None
        self._tell_all()

    def close(self) -> None:
        """Its thread has ended; what was not received is dropped, and who waits to send to it is told."""
        self.is_closed = True
        self._held = None
        self._tell_all()
        self.wake_reader()

    @property
    def _has_room(self) -> bool:
        return self.is_parked or len(self) + self._promised < MOST_MESSAGES

    def _tell_senders(self) -> None:
        while self._senders and self._has_room:
            self._promised += 1
            self._senders.popleft().set()

    def _tell_all(self) -> None:
        while self._senders:
            self._promised += 1
            self._senders.popleft().set()
