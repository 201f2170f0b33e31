"""The board of a tree: an append-only list of what its threads have posted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

from runtime.link.commands import ThreadPath


class Posting(NamedTuple):
    """What a thread has posted."""

    path: ThreadPath
    text: str


class Board(Sequence[Posting]):
    """Postings in order. Threads post by `ReasoningThread.post`."""

    __slots__ = ("_early", "_postings")

    def __init__(self) -> None:
        """Made with a tree."""
        self._postings: list[Posting] = []
        self._early: dict[int, Posting] = {}
        """Postings that are played back before those recorded before them, by their places."""

    def __repr__(self) -> str:
        return f"<Board of {len(self)} postings>"

    def __len__(self) -> int:
        return len(self._postings)

    @overload
    def __getitem__(self, index: int) -> Posting: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Posting]: ...
    def __getitem__(self, index: int | slice) -> Posting | Sequence[Posting]:
        return self._postings[index]


def put_on(board: Board, posting: Posting, place: int | None = None) -> None:
    """Appends a posting, or puts it in the place that it had, where it is seen once all before it are there."""
    own, early = board._postings, board._early
    early[len(own) if place is None else place] = posting
    while len(own) in early:
        own.append(early.pop(len(own)))


class Tree:
    """A root thread and all below it: `thread.tree`."""

    __slots__ = ("_board",)

    def __init__(self, board: Board) -> None:
        """Made with a root thread."""
        self._board = board

    @property
    def board(self) -> Board:
        """What its threads have posted, in order."""
        return self._board
