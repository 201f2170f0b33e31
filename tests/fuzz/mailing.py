"""What random programs send, post and receive, and that none of it is lost."""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from runtime import Child, ReasoningThread, ThreadMessage, ThreadStateError
from tests.fuzz import program as p

PATIENCE = 0.002
"""Seconds for which a thread waits for messages."""


class Mail:
    """What was sent, received and posted in one program."""

    def __init__(self) -> None:
        self._under_way: list[tuple[tuple[int, ...], ThreadMessage]] = []
        self._posted: dict[int, list[tuple[tuple[int, ...], str]]] = {}
        self.findings: list[str] = []

    async def send(self, thread: ReasoningThread, children: Sequence[Child], action: p.Send) -> None:
        to = thread.path[:-1] if action.to is None or not children else children[action.to % len(children)].path
        if not to:
            return
        message = to, ThreadMessage(sender=thread.path, text="", tokens=action.tokens)
        # Whoever waits for it may have it before this goes on.
        self._under_way.append(message)
        try:
            await thread.send(to, action.tokens)
        except BaseException:
            self._under_way.remove(message)
            raise

    def post(self, thread: ReasoningThread, text: str) -> None:
        thread.post(text)
        self._posted.setdefault(thread.path[0], []).append((thread.path, text))

    async def receive(self, thread: ReasoningThread, how: str) -> tuple[int, ...]:
        """The tokens that were appended to the thread's context."""
        if how == "context":
            got = await thread.receive()
            self._take(thread, got)
            return tuple(token for message in got for token in message.tokens)
        with anyio.move_on_after(PATIENCE):
            async for message in thread.messages(waits=how == "wait"):
                self._take(thread, [message])
        return ()

    def _take(self, thread: ReasoningThread, messages: Sequence[ThreadMessage]) -> None:
        for message in messages:
            if (thread.path, message) in self._under_way:
                self._under_way.remove((thread.path, message))
            elif not message.text:
                self.findings.append(f"thread {thread.path} received {message}, which nobody had sent it by then")

    def check_board(self, thread: ReasoningThread) -> None:
        """When a tree has ended."""
        board, posted = list(thread.tree.board), self._posted.get(thread.path[0], [])
        if board != posted:
            self.findings.append(f"the board of tree {thread.path} has {board}; posted were {posted}")


def is_about_an_end(error: ThreadStateError) -> bool:
    """Whether a message could not be sent, because who it was for had ended, or is driven by its model."""
    return "receives no message" in str(error)
