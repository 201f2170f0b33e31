"""The mailboxes of the open threads of one tree, and its board. Used on the event loop only."""

from __future__ import annotations

from runtime.errors import ThreadStateError
from runtime.link.commands import ThreadPath
from runtime.threads.board import Board, Posting, put_on
from runtime.threads.mailbox import Mailbox


class PostOffice:
    """What the threads of a tree know each other by. Whoever waits for something to happen in it is woken to look
    again.
    """

    __slots__ = ("_mailboxes", "_readers", "board")

    def __init__(self) -> None:
        self.board = Board()
        self._mailboxes: dict[ThreadPath, Mailbox] = {}
        """Of threads that are open."""
        self._readers: dict[Mailbox, None] = {}
        """Those on which a coroutine waits."""

    def open(self, path: ThreadPath, mailbox: Mailbox) -> None:
        """A thread begins, with this mailbox."""
        self._mailboxes[path] = mailbox

    def close(self, path: ThreadPath) -> None:
        """A thread has ended; more often does nothing."""
        mailbox = self._mailboxes.pop(path, None)
        if mailbox is not None:
            mailbox.close()
            self._wake_readers()

    def find(self, path: ThreadPath) -> Mailbox | None:
        """The mailbox of a thread; None where it is not open."""
        return self._mailboxes.get(path)

    def mailbox(self, path: ThreadPath) -> Mailbox:
        """The same. Raises `ThreadStateError` where nothing can be sent to that thread."""
        mailbox = self._mailboxes.get(path)
        if mailbox is None:
            raise ThreadStateError(
                f"Thread {path} is not open: it has ended, or was never started, so that it receives no message. Send "
                "while it is open."
            )
        mailbox.check(path)
        return mailbox

    @property
    def has_one(self) -> bool:
        """Whether one thread alone is open, so that nobody can send to it."""
        return len(self._mailboxes) < 2

    def post(self, posting: Posting, place: int | None = None) -> None:
        """Puts a posting on the board, as `put_on` does."""
        put_on(self.board, posting, place)
        self._wake_readers()

    async def changed(self, path: ThreadPath, mailbox: Mailbox) -> None:
        """Returns when something has been sent to a thread or posted, or another one has ended; raises like
        `Mailbox.changed`."""
        self._readers[mailbox] = None
        try:
            await mailbox.changed(path)
        finally:
            self._readers.pop(mailbox, None)

    def _wake_readers(self) -> None:
        for mailbox in self._readers:
            mailbox.wake_reader()
