"""Messages between threads, from being sent to being received."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable

import msgspec

from runtime.link import AnyEvent, MessageSent, MessagesReceived, Posted, ThreadOpened, ThreadPath
from traces.tree import path_name


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """A message, or a post, and when who it was for had it. Times are seconds."""

    sender: ThreadPath
    to: ThreadPath
    text: str
    sent: float
    received: float
    is_posted: bool = False
    """Whether it came by the board."""


def deliveries(events: Iterable[AnyEvent]) -> list[Delivery]:
    """Everything that threads have received of each other, in this order; what is not there when it is received is left
    out."""
    return _Following(events).delivered


def mail_imbalances(events: Iterable[AnyEvent]) -> list[str]:
    """Where threads have received what nobody had sent them by then; empty for every trace of a correct engine."""
    return _Following(events).imbalances


class _Following:
    """The mail of a trace, event by event."""

    def __init__(self, events: Iterable[AnyEvent]) -> None:
        self.delivered: list[Delivery] = []
        self.imbalances: list[str] = []
        self._under_way: defaultdict[tuple[ThreadPath, ThreadPath], deque[MessageSent]] = defaultdict(deque)
        """Sent and not received, by sender and addressee."""
        self._boards: defaultdict[int, list[Posted]] = defaultdict(list)
        self._seen: dict[ThreadPath, int] = {}
        for event in events:
            match event:
                case MessageSent() if not event.error:
                    self._under_way[event.thread, event.to].append(event)
                case Posted(thread=path):
                    self._boards[path[0]].append(event)
                case ThreadOpened(inherits=parent) if parent is not None:
                    self._seen[event.thread] = self._seen.get(parent, 0)
                case MessagesReceived():
                    self._receive(event)
                case _:
                    pass

    def _receive(self, event: MessagesReceived) -> None:
        path, name = event.thread, path_name(event.thread)
        for sender in event.senders:
            waiting = self._under_way.get((sender, path))
            if not waiting:
                self.imbalances.append(f"thread {name} receives a message that thread {path_name(sender)} has not sent")
                continue
            sent = waiting.popleft()
            self.delivered.append(Delivery(sender=sender, to=path, text=sent.text, sent=sent.time, received=event.time))
        board, seen = self._boards[path[0]], self._seen.get(path, 0)
        if event.posts > len(board):
            self.imbalances.append(f"thread {name} passes {event.posts} posts of a board that has {len(board)}")
        self._seen[path] = event.posts
        for posted in board[seen : event.posts]:
            if posted.thread != path:
                self.delivered.append(
                    Delivery(
                        sender=posted.thread,
                        to=path,
                        text=posted.text,
                        sent=posted.time,
                        received=event.time,
                        is_posted=True,
                    )
                )
